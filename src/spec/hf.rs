//! Hugging Face config.json to [`ModelSpec`].
//!
//! Defaults are those of the transformers classes: a key that is absent there means what the class
//! of that architecture takes it to mean, not what another architecture would.

mod architecture;
mod fields;
#[cfg(test)]
mod tests;

use super::model::{Activation, Dtype, LayerLayout, ModelSpec, Norm, SlidingWindow};
use super::precision::{InputScales, Quantization, WeightFormat};
use architecture::Architecture;
use fields::Fields;
use serde_json::Value;

/// Why a config.json is not a model that this program knows. Each prints as one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HfError {
    /// The text is not JSON.
    #[error("line {line}, column {column}: not JSON: {problem}")]
    NotJson {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },
    /// The text is JSON but not an object.
    #[error("expected an object as in Hugging Face's config.json")]
    NotAnObject,
    /// The operators of this architecture are not modelled.
    #[error("{what} is not understood: {reason}; understood are {}", Architecture::list())]
    Unsupported {
        /// The architecture, by its name in the file.
        what: String,
        /// Why not.
        reason: &'static str,
    },
    /// A key that this architecture needs is absent.
    #[error("`{key}` is missing; expected it beside `architectures`")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key has a value that cannot be used.
    #[error("`{key}` is {found}; expected {expected}")]
    Bad {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would do.
        expected: String,
    },
    /// The numbers do not make a model.
    #[error("{0}")]
    Invalid(String),
}

/// Reads the text of a config.json as the model called `name`; `source` says where it comes from.
///
/// # Errors
/// When the architecture is not understood (it is named, with those that are), or a value is
/// missing or of no use.
pub fn from_config_json(text: &str, name: &str, source: &str) -> Result<ModelSpec, HfError> {
    let value: Value = serde_json::from_str(text).map_err(|error| HfError::NotJson {
        line: error.line(),
        column: error.column(),
        problem: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
    })?;
    from_value(&value, name, source)
}

/// The model's own name, where the file states one that is an id (`org/model`).
pub fn stated_name(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    let name = value.get("_name_or_path")?.as_str()?;
    super::catalog::check_model_name(name).ok()?;
    Some(name.to_owned())
}

fn from_value(value: &Value, name: &str, source: &str) -> Result<ModelSpec, HfError> {
    let fields = Fields(value.as_object().ok_or(HfError::NotAnObject)?);
    let arch = Architecture::of(fields)?;
    arch.refuse_unusual(fields)?;
    let heads = fields.need_count("num_attention_heads")?;
    let hidden = fields.need_count("hidden_size")?;
    let spec = ModelSpec {
        name: name.to_owned(),
        aliases: Vec::new(),
        source: source.to_owned(),
        num_layers: fields.need_count("num_hidden_layers")?,
        hidden_size: hidden,
        intermediate_size: intermediate_size(arch, fields)?,
        num_attention_heads: heads,
        num_key_value_heads: arch.key_value_heads(fields, heads)?,
        head_dim: head_dim(arch, fields, hidden, heads)?,
        vocab_size: fields.need_count("vocab_size")?,
        max_position_embeddings: context(arch, fields)?,
        gated_mlp: arch != Architecture::Phi,
        activation: activation(arch, fields)?,
        norm: if arch == Architecture::Phi { Norm::LayerNorm } else { Norm::RmsNorm },
        layer_layout: match arch {
            Architecture::Phi => LayerLayout::Parallel,
            Architecture::Gemma2 => LayerLayout::Sandwich,
            _ => LayerLayout::PreNorm,
        },
        qk_norm: arch == Architecture::Qwen3,
        qkv_bias: matches!(arch, Architecture::Qwen | Architecture::Qwen2 | Architecture::Phi),
        linear_bias: arch == Architecture::Phi,
        tie_word_embeddings: fields
            .flag("tie_word_embeddings")?
            .unwrap_or(arch.ties_embeddings_by_default()),
        rope_theta: rope_theta(arch, fields)?,
        partial_rotary_factor: partial_rotary_factor(arch, fields)?,
        sliding_window: sliding_window(arch, fields)?,
        dtype: dtype(fields)?,
        quantization: quantization(fields)?,
    };
    spec.check().map_err(HfError::Invalid)?;
    Ok(spec)
}

fn intermediate_size(arch: Architecture, fields: Fields<'_>) -> Result<u32, HfError> {
    match (arch, fields.count("intermediate_size")?) {
        // Qwen (the first) counts gate and up together.
        (Architecture::Qwen, Some(both)) => Ok(both / 2),
        // An absent value means four times the width to phi.
        (Architecture::Phi, None) => Ok(fields.need_count("hidden_size")?.saturating_mul(4)),
        (_, Some(size)) => Ok(size),
        (_, None) => Err(HfError::Missing { key: "intermediate_size" }),
    }
}

fn head_dim(
    arch: Architecture,
    fields: Fields<'_>,
    hidden: u32,
    heads: u32,
) -> Result<u32, HfError> {
    let key = if arch == Architecture::Qwen { "kv_channels" } else { "head_dim" };
    if let Some(stated) = fields.count(key)? {
        return Ok(stated);
    }
    if let Some(default) = arch.default_head_dim() {
        return Ok(default);
    }
    match hidden.checked_div(heads) {
        Some(dim) if dim * heads == hidden => Ok(dim),
        _ => Err(HfError::Bad {
            key: "hidden_size".into(),
            found: hidden.to_string(),
            expected: format!("a multiple of num_attention_heads ({heads}), or a `{key}`"),
        }),
    }
}

/// Tokens that the model was made for, stretched as `rope_scaling` says. Llama 3's kind, longrope
/// and the like state the stretched length already; linear, dynamic and yarn a factor to apply.
fn context(arch: Architecture, fields: Fields<'_>) -> Result<u32, HfError> {
    let stated = match (fields.count("max_position_embeddings")?, arch) {
        // Qwen (the first) states what it was trained on beside what it can be stretched to.
        (Some(most), Architecture::Qwen) => fields.count("seq_length")?.unwrap_or(most).min(most),
        (Some(most), _) => most,
        (None, Architecture::Qwen) => fields.need_count("seq_length")?,
        (None, _) => return Err(HfError::Missing { key: "max_position_embeddings" }),
    };
    let Some(scaling) = rope_scaling(fields)? else { return Ok(stated) };
    let kind = scaling.text("rope_type")?.or(scaling.text("type")?).unwrap_or("default");
    let base = match kind {
        "default" | "llama3" | "longrope" | "su" | "proportional" => return Ok(stated),
        "linear" | "dynamic" => stated,
        "yarn" => scaling.count("original_max_position_embeddings")?.unwrap_or(stated),
        other => {
            return Err(HfError::Bad {
                key: "rope_scaling.rope_type".into(),
                found: format!("`{other}`"),
                expected: "one of default, llama3, longrope, linear, dynamic, yarn".into(),
            });
        }
    };
    let factor = scaling.number("factor")?.unwrap_or(1.0);
    let stretched = f64::from(base) * factor;
    if stretched >= 1.0 && stretched <= f64::from(u32::MAX) {
        return Ok(stretched.round() as u32);
    }
    Err(HfError::Bad {
        key: "rope_scaling.factor".into(),
        found: factor.to_string(),
        expected: "a number, 1 or above".into(),
    })
}

/// `rope_scaling`, or what later versions of transformers call it.
fn rope_scaling(fields: Fields<'_>) -> Result<Option<Fields<'_>>, HfError> {
    match fields.object("rope_scaling")? {
        Some(scaling) => Ok(Some(scaling)),
        None => fields.object("rope_parameters"),
    }
}

fn rope_theta(arch: Architecture, fields: Fields<'_>) -> Result<f64, HfError> {
    let key = if arch == Architecture::Qwen { "rotary_emb_base" } else { "rope_theta" };
    match (fields.number(key)?, fields.object("rope_parameters")?) {
        (Some(theta), _) => Ok(theta),
        (None, Some(parameters)) => Ok(parameters.number("rope_theta")?.unwrap_or(10_000.0)),
        (None, None) => Ok(10_000.0),
    }
}

fn partial_rotary_factor(arch: Architecture, fields: Fields<'_>) -> Result<f64, HfError> {
    let default = if arch == Architecture::Phi { 0.5 } else { 1.0 };
    let key = if arch == Architecture::Qwen { "rotary_pct" } else { "partial_rotary_factor" };
    match (fields.number(key)?, fields.object("rope_parameters")?) {
        (Some(share), _) => Ok(share),
        (None, Some(parameters)) => Ok(parameters.number(key)?.unwrap_or(default)),
        (None, None) => Ok(default),
    }
}

fn activation(arch: Architecture, fields: Fields<'_>) -> Result<Activation, HfError> {
    let by_default = match arch {
        // Qwen (the first) has no key for it.
        Architecture::Qwen => return Ok(Activation::Silu),
        Architecture::Phi | Architecture::Gemma | Architecture::Gemma2 => "gelu",
        _ => "silu",
    };
    let stated = fields.text("hidden_activation")?.or(fields.text("hidden_act")?);
    match stated.unwrap_or(by_default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" | "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::Gelu),
        other => Err(HfError::Bad {
            key: "hidden_act".into(),
            found: format!("`{other}`"),
            expected: "silu or a gelu".into(),
        }),
    }
}

fn sliding_window(
    arch: Architecture,
    fields: Fields<'_>,
) -> Result<Option<SlidingWindow>, HfError> {
    let every = match arch {
        Architecture::Mistral | Architecture::Phi3 => 1,
        // Even layers are windowed, odd ones see everything.
        Architecture::Gemma2 => 2,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if !fields.flag("use_sliding_window")?.unwrap_or(false) {
                return Ok(None);
            }
            let layers = fields.need_count("num_hidden_layers")?;
            // Layers from this one on are windowed.
            match fields.count("max_window_layers")?.unwrap_or(0) {
                0 => 1,
                first if first >= layers => return Ok(None),
                first => {
                    return Err(HfError::Bad {
                        key: "max_window_layers".into(),
                        found: first.to_string(),
                        expected: format!(
                            "0 or {layers} (windows on a part of the layers are not modelled)"
                        ),
                    });
                }
            }
        }
        _ => return Ok(None),
    };
    Ok(fields.count("sliding_window")?.map(|tokens| SlidingWindow { tokens, every }))
}

/// Type that an engine serves the weights in: 32-bit checkpoints are loaded in 16 bits.
/// What `quantization_config` states: 8-bit floats as Qwen and DeepSeek write it (`quant_method: fp8`).
fn quantization(fields: Fields<'_>) -> Result<Option<Quantization>, HfError> {
    let Some(stated) = fields.object("quantization_config")? else { return Ok(None) };
    let method = stated.text("quant_method")?.unwrap_or("none");
    if method != "fp8" {
        return Err(HfError::Unsupported {
            what: format!("`quantization_config` with quant_method `{method}`"),
            reason: "only fp8 is understood, so take the config.json of the unquantised model and add \
                     `quantization` to the file that becomes of it",
        });
    }
    let blocks = stated.get("weight_block_size").is_some();
    Ok(Some(Quantization {
        weights: if blocks { WeightFormat::Fp8Block } else { WeightFormat::Fp8 },
        input_scales: match stated.text("activation_scheme")? {
            Some("static") => InputScales::Static,
            _ => InputScales::Dynamic,
        },
        kv_cache: None,
    }))
}

fn dtype(fields: Fields<'_>) -> Result<Dtype, HfError> {
    let stated = fields.text("torch_dtype")?.or(fields.text("dtype")?).unwrap_or("bfloat16");
    match stated.strip_prefix("torch.").unwrap_or(stated) {
        "bfloat16" | "float32" => Ok(Dtype::Bf16),
        "float16" | "half" => Ok(Dtype::F16),
        other => Err(HfError::Bad {
            key: "torch_dtype".into(),
            found: format!("`{other}`"),
            expected: "bfloat16, float16 or float32".into(),
        }),
    }
}
