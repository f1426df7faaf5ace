//! Which architectures are understood, and what sets each apart.

use super::HfError;
use super::fields::Fields;
use serde_json::Value;

/// An architecture whose operators [`crate::spec::ops`] can list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Mistral,
    Qwen,
    Qwen2,
    Qwen3,
    Gemma,
    Gemma2,
    Phi,
    Phi3,
    InternLm,
    InternLm2,
}

/// Each with its class in `architectures` and its `model_type`.
const ALL: [(Architecture, &str, &str); 11] = [
    (Architecture::Llama, "LlamaForCausalLM", "llama"),
    (Architecture::Mistral, "MistralForCausalLM", "mistral"),
    (Architecture::Qwen, "QWenLMHeadModel", "qwen"),
    (Architecture::Qwen2, "Qwen2ForCausalLM", "qwen2"),
    (Architecture::Qwen3, "Qwen3ForCausalLM", "qwen3"),
    (Architecture::Gemma, "GemmaForCausalLM", "gemma"),
    (Architecture::Gemma2, "Gemma2ForCausalLM", "gemma2"),
    (Architecture::Phi, "PhiForCausalLM", "phi"),
    (Architecture::Phi3, "Phi3ForCausalLM", "phi3"),
    (Architecture::InternLm, "InternLMForCausalLM", "internlm"),
    (Architecture::InternLm2, "InternLM2ForCausalLM", "internlm2"),
];

impl Architecture {
    /// The classes that are understood, for messages.
    pub fn list() -> String {
        ALL.map(|(_, class, _)| class).join(", ")
    }

    /// What `architectures`, or `model_type` in its absence, says.
    pub fn of(fields: Fields<'_>) -> Result<Architecture, HfError> {
        let class = match fields.get("architectures") {
            None => None,
            Some(Value::Array(classes)) if classes.is_empty() => None,
            Some(Value::Array(classes)) => classes.first().and_then(Value::as_str),
            Some(other) => {
                return Err(HfError::Bad {
                    key: "architectures".into(),
                    found: other.to_string().chars().take(60).collect(),
                    expected: "a list of one class, such as [\"LlamaForCausalLM\"]".into(),
                });
            }
        };
        let model_type = fields.text("model_type")?;
        let (what, known) = match (class, model_type) {
            (Some(class), _) => (class, ALL.iter().find(|(_, name, _)| *name == class)),
            (None, Some(kind)) => (kind, ALL.iter().find(|(_, _, name)| *name == kind)),
            (None, None) => return Err(HfError::Missing { key: "architectures" }),
        };
        let refuse = |reason| Err(HfError::Unsupported { what: format!("`{what}`"), reason });
        if let Some(reason) = other_family(fields, what) {
            return refuse(reason);
        }
        match known {
            Some((architecture, _, _)) => Ok(*architecture),
            None => refuse("its operators are not modelled"),
        }
    }

    /// Refuses what the class allows but [`crate::spec::model::ModelSpec`] cannot state.
    pub fn refuse_unusual(self, fields: Fields<'_>) -> Result<(), HfError> {
        let refuse =
            |what: &str, reason| Err(HfError::Unsupported { what: what.to_owned(), reason });
        let set = |key| Ok(fields.flag(key)?.unwrap_or(false));
        match self {
            Architecture::Qwen if !fields.flag("no_bias")?.unwrap_or(true) => refuse(
                "`no_bias` of false",
                "biases here are modelled on query, key and value only",
            ),
            Architecture::InternLm | Architecture::InternLm2 if set("bias")? => {
                refuse("`bias` of true", "a bias on attention alone is not modelled")
            }
            Architecture::Phi if set("qk_layernorm")? => {
                refuse("`qk_layernorm` of true", "it is not modelled for phi")
            }
            Architecture::Qwen2 | Architecture::Phi | Architecture::Qwen => Ok(()),
            _ if set("attention_bias")? => {
                refuse("`attention_bias` of true", "a bias on attention alone is not modelled")
            }
            _ if set("mlp_bias")? => refuse(
                "`mlp_bias` of true",
                "a bias on the feed-forward layer alone is not modelled",
            ),
            _ => Ok(()),
        }
    }

    /// Key-value heads. Where the class has a default of its own, the key must be there.
    pub fn key_value_heads(self, fields: Fields<'_>, heads: u32) -> Result<u32, HfError> {
        let key = "num_key_value_heads";
        if matches!(self, Architecture::Qwen | Architecture::InternLm) {
            return Ok(heads);
        }
        match fields.count(key)? {
            Some(stated) => Ok(stated),
            // Written as null, every class takes as many as there are query heads.
            None if fields.0.contains_key(key) => Ok(heads),
            None => match self {
                Architecture::Llama
                | Architecture::Phi
                | Architecture::Phi3
                | Architecture::InternLm2 => Ok(heads),
                _ => Err(HfError::Missing { key }),
            },
        }
    }

    /// Width of a head where the class fixes it instead of deriving it.
    pub const fn default_head_dim(self) -> Option<u32> {
        match self {
            Architecture::Qwen3 => Some(128),
            Architecture::Gemma | Architecture::Gemma2 => Some(256),
            _ => None,
        }
    }

    /// What an absent `tie_word_embeddings` means.
    pub const fn ties_embeddings_by_default(self) -> bool {
        matches!(self, Architecture::Gemma | Architecture::Gemma2)
    }
}

/// The reason why a model is of another family, where it shows.
fn other_family(fields: Fields<'_>, what: &str) -> Option<&'static str> {
    let many = |key: &str| fields.get(key).and_then(Value::as_f64).is_some_and(|n| n > 1.0);
    let is_set = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(false);
    let has = |key: &str| fields.get(key).is_some();
    let says = |word: &str| what.to_lowercase().contains(word);
    if has("vision_config") || has("audio_config") || has("text_config") {
        return Some("it is a multimodal model; only text decoders are modelled");
    }
    if is_set("is_encoder_decoder") {
        return Some("it is an encoder-decoder model; only decoders are modelled");
    }
    if has("kv_lora_rank") {
        return Some("it has multi-head latent attention (MLA), which is not modelled");
    }
    if ["num_experts", "num_local_experts", "n_routed_experts"].into_iter().any(many)
        || says("moe")
        || says("mixtral")
    {
        return Some("it is a mixture of experts (MoE), which is not modelled");
    }
    None
}
