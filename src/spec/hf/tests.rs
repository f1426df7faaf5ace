use super::*;
use crate::spec::catalog::Catalog;
use proptest::prelude::*;

const LLAMA_2_7B: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "rope_scaling": null, "tie_word_embeddings": false,
    "torch_dtype": "float16", "vocab_size": 32000}"#;

/// Configs with the keys that the published ones have, as far as they matter, and the shipped
/// model that each must give.
const PUBLISHED: [(&str, &str); 11] = [
    ("meta-llama/Llama-2-7b-hf", LLAMA_2_7B),
    (
        "meta-llama/Llama-3.2-1B",
        r#"{"architectures": ["LlamaForCausalLM"], "attention_bias": false, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
        "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "vocab_size": 128256}"#,
    ),
    (
        "mistralai/Mistral-7B-v0.1",
        r#"{"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rope_theta": 10000.0,
        "sliding_window": 4096, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "vocab_size": 32000}"#,
    ),
    (
        "mistralai/Mistral-7B-v0.3",
        r#"{"architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rope_theta": 1000000.0,
        "sliding_window": null, "torch_dtype": "bfloat16", "vocab_size": 32768}"#,
    ),
    (
        "Qwen/Qwen2.5-7B",
        r#"{"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
        "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
        "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
        "rope_theta": 1000000.0, "sliding_window": 131072, "use_sliding_window": false,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 152064}"#,
    ),
    (
        "Qwen/Qwen3-0.6B",
        r#"{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
        "max_position_embeddings": 40960, "max_window_layers": 28, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "use_sliding_window": false,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "vocab_size": 151936}"#,
    ),
    (
        "Qwen/Qwen-72B",
        r#"{"architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 8192,
        "intermediate_size": 49152, "kv_channels": 128, "max_position_embeddings": 32768,
        "no_bias": true, "num_attention_heads": 64, "num_hidden_layers": 80,
        "rotary_emb_base": 1000000, "rotary_pct": 1.0, "seq_length": 32768,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 152064}"#,
    ),
    (
        "google/gemma-2-9b",
        r#"{"architectures": ["Gemma2ForCausalLM"], "attention_bias": false,
        "attn_logit_softcapping": 50.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 3584, "intermediate_size": 14336,
        "max_position_embeddings": 8192, "num_attention_heads": 16, "num_hidden_layers": 42,
        "num_key_value_heads": 8, "rope_theta": 10000.0, "sliding_window": 4096,
        "torch_dtype": "float32", "vocab_size": 256000}"#,
    ),
    (
        "microsoft/phi-2",
        r#"{"architectures": ["PhiForCausalLM"], "hidden_act": "gelu_new", "hidden_size": 2560,
        "intermediate_size": 10240, "max_position_embeddings": 2048, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "partial_rotary_factor": 0.4,
        "qk_layernorm": false, "rope_scaling": null, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "torch_dtype": "float16", "vocab_size": 51200}"#,
    ),
    (
        "internlm/internlm-20b",
        r#"{"architectures": ["InternLMForCausalLM"], "bias": false, "hidden_act": "silu",
        "hidden_size": 5120, "intermediate_size": 13824, "max_position_embeddings": 4096,
        "num_attention_heads": 40, "num_hidden_layers": 60, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "vocab_size": 103168}"#,
    ),
    (
        "internlm/internlm2-20b",
        r#"{"architectures": ["InternLM2ForCausalLM"], "bias": false, "hidden_act": "silu",
        "hidden_size": 6144, "intermediate_size": 16384, "max_position_embeddings": 32768,
        "num_attention_heads": 48, "num_hidden_layers": 48, "num_key_value_heads": 8,
        "rope_scaling": {"type": "dynamic", "factor": 1.0}, "rope_theta": 1000000,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 92544}"#,
    ),
];

fn read(text: &str) -> Result<ModelSpec, HfError> {
    from_config_json(text, "org/model", "a test")
}

/// `base` with `changes` laid over its keys.
fn with(base: &str, changes: &str) -> String {
    let mut value: Value = serde_json::from_str(base).unwrap();
    let changes: Value = serde_json::from_str(changes).unwrap();
    value.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    value.to_string()
}

fn without(base: &str, key: &str) -> String {
    let mut value: Value = serde_json::from_str(base).unwrap();
    value.as_object_mut().unwrap().shift_remove(key).unwrap();
    value.to_string()
}

#[test]
fn published_configs_give_the_shipped_models() {
    let catalog = Catalog::open(Some(std::path::Path::new("no-such-folder")));
    for (name, text) in PUBLISHED {
        let shipped = catalog.model(name).unwrap();
        let mut read = from_config_json(text, name, &shipped.source).unwrap();
        read.aliases.clone_from(&shipped.aliases);
        assert_eq!(read, shipped, "{name}");
    }
}

#[test]
fn gemma_and_phi_3_have_as_many_parameters_as_published() {
    let gemma_7b = r#"{"architectures": ["GemmaForCausalLM"], "head_dim": 256, "hidden_act": "gelu",
        "hidden_size": 3072, "intermediate_size": 24576, "max_position_embeddings": 8192,
        "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 16,
        "torch_dtype": "bfloat16", "vocab_size": 256000}"#;
    assert_eq!(read(gemma_7b).unwrap().params(), 8_537_680_896);
    let phi_3_mini = r#"{"architectures": ["Phi3ForCausalLM"], "hidden_act": "silu",
        "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "sliding_window": 2047, "torch_dtype": "bfloat16", "vocab_size": 32064}"#;
    let phi_3_mini = read(phi_3_mini).unwrap();
    assert_eq!(phi_3_mini.params(), 3_821_079_552);
    assert_eq!(phi_3_mini.sliding_window, Some(SlidingWindow { tokens: 2047, every: 1 }));
}

#[test]
fn an_unknown_architecture_is_refused_by_name_with_those_that_are_understood() {
    let refused = read(&with(LLAMA_2_7B, r#"{"architectures": ["MambaForCausalLM"]}"#));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "`MambaForCausalLM` is not understood: its operators are not modelled; understood are \
         LlamaForCausalLM, MistralForCausalLM, QWenLMHeadModel, Qwen2ForCausalLM, \
         Qwen3ForCausalLM, GemmaForCausalLM, Gemma2ForCausalLM, PhiForCausalLM, Phi3ForCausalLM, \
         InternLMForCausalLM, InternLM2ForCausalLM"
    );
}

#[test]
fn other_families_are_refused_for_what_they_are() {
    for (changes, reason) in [
        (
            r#"{"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}"#,
            "mixture of experts",
        ),
        (r#"{"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}"#, "mixture of experts"),
        (
            r#"{"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}"#,
            "latent attention",
        ),
        (
            r#"{"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": true}"#,
            "encoder-decoder",
        ),
        (
            r#"{"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}"#,
            "multimodal",
        ),
        (r#"{"quantization_config": {"quant_method": "gptq"}}"#, "unquantised"),
        (r#"{"attention_bias": true}"#, "bias on attention"),
    ] {
        let error = read(&with(LLAMA_2_7B, changes)).unwrap_err().to_string();
        assert!(error.contains(reason), "{changes}: {error}");
    }
}

#[test]
fn eight_bit_checkpoints_say_what_they_shrink() {
    let read = |stated: &str| {
        let changes = format!(r#"{{"quantization_config": {stated}}}"#);
        read(&with(LLAMA_2_7B, &changes)).unwrap().quantization.unwrap()
    };
    let blocks = r#"{"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}"#;
    let found = read(blocks);
    assert_eq!((found.weights, found.input_scales), (WeightFormat::Fp8Block, InputScales::Dynamic));
    let found = read(r#"{"quant_method": "fp8", "activation_scheme": "static"}"#);
    assert_eq!((found.weights, found.input_scales), (WeightFormat::Fp8, InputScales::Static));
    assert_eq!(found.kv_cache, None);
}

#[test]
fn absent_keys_mean_what_the_class_takes_them_to_mean() {
    let heads = read(&without(LLAMA_2_7B, "num_key_value_heads")).unwrap();
    assert_eq!(heads.num_key_value_heads, 32);
    let tied = |class: &str| {
        let class = format!(r#"{{"architectures": ["{class}"], "head_dim": 128}}"#);
        read(&without(&with(LLAMA_2_7B, &class), "tie_word_embeddings"))
            .unwrap()
            .tie_word_embeddings
    };
    assert!(!tied("LlamaForCausalLM"));
    assert!(tied("GemmaForCausalLM"));
    let qwen3 = with(LLAMA_2_7B, r#"{"architectures": ["Qwen3ForCausalLM"], "hidden_size": 2048}"#);
    assert_eq!(read(&qwen3).unwrap().head_dim, 128);
    let mistral = with(LLAMA_2_7B, r#"{"architectures": ["MistralForCausalLM"]}"#);
    assert_eq!(
        read(&without(&mistral, "num_key_value_heads")),
        Err(HfError::Missing { key: "num_key_value_heads" })
    );
    let by_type = read(&without(LLAMA_2_7B, "architectures"));
    assert_eq!(by_type, read(LLAMA_2_7B));
}

#[test]
fn rope_scaling_stretches_the_context_where_it_is_not_stretched_already() {
    let context = |scaling: &str| {
        let changes = format!(r#"{{"rope_scaling": {scaling}}}"#);
        read(&with(LLAMA_2_7B, &changes)).map(|model| model.max_position_embeddings)
    };
    assert_eq!(context(r#"{"type": "linear", "factor": 4.0}"#), Ok(16_384));
    assert_eq!(
        context(r#"{"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 2048}"#),
        Ok(8192)
    );
    assert_eq!(context(r#"{"rope_type": "llama3", "factor": 8.0}"#), Ok(4096));
    let error = context(r#"{"rope_type": "spiral"}"#).unwrap_err().to_string();
    assert!(error.starts_with("`rope_scaling.rope_type` is `spiral`; expected one of"), "{error}");
}

#[test]
fn windows_hold_only_where_they_are_switched_on() {
    let window = |changes: &str| {
        let base =
            with(LLAMA_2_7B, r#"{"architectures": ["Qwen2ForCausalLM"], "sliding_window": 512}"#);
        read(&with(&base, changes)).map(|model| model.sliding_window)
    };
    let all = Some(SlidingWindow { tokens: 512, every: 1 });
    assert_eq!(window("{}"), Ok(None));
    assert_eq!(window(r#"{"use_sliding_window": true, "max_window_layers": 32}"#), Ok(None));
    assert_eq!(window(r#"{"use_sliding_window": true, "max_window_layers": 0}"#), Ok(all));
    assert!(window(r#"{"use_sliding_window": true, "max_window_layers": 7}"#).is_err());
}

#[test]
fn errors_name_the_key_its_value_and_what_was_expected() {
    for (changes, message) in [
        (r#"{"hidden_size": "wide"}"#, r#"`hidden_size` is "wide"; expected a whole number"#),
        (r#"{"num_hidden_layers": 0}"#, "num_layers is 0; expected 1 to 4096"),
        (
            r#"{"num_attention_heads": 0, "num_key_value_heads": 0}"#,
            "`hidden_size` is 4096; expected a multiple of num_attention_heads (0), or a `head_dim`",
        ),
        (r#"{"hidden_act": "relu"}"#, "`hidden_act` is `relu`; expected silu or a gelu"),
        (r#"{"vocab_size": null}"#, "`vocab_size` is missing; expected it beside `architectures`"),
        (
            r#"{"torch_dtype": "float8_e4m3fn"}"#,
            "`torch_dtype` is `float8_e4m3fn`; expected bfloat16, float16 or float32",
        ),
    ] {
        let error = read(&with(LLAMA_2_7B, changes)).unwrap_err().to_string();
        assert_eq!(error, message);
    }
    let not_json = read("{\n  hidden").unwrap_err().to_string();
    assert!(not_json.starts_with("line 2, column 3: not JSON: "), "{not_json}");
    assert_eq!(read("[]"), Err(HfError::NotAnObject));
}

#[test]
fn the_model_name_is_taken_only_where_it_is_an_id() {
    let named = |name: &str| stated_name(&format!(r#"{{"_name_or_path": "{name}"}}"#));
    assert_eq!(named("Qwen/Qwen3-8B").as_deref(), Some("Qwen/Qwen3-8B"));
    assert_eq!(named("/data/checkpoints/final"), None);
    assert_eq!(named("../x"), None);
    assert_eq!(stated_name("{}"), None);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..=u64::from(u32::MAX)).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-zA-Z0-9_/.]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::hash_map("(factor|rope_type|type|x)", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever a file says, the answer is a model that makes sense or an error, never a panic.
    #[test]
    fn no_json_makes_it_panic(
        which in 0..PUBLISHED.len(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 0..4),
    ) {
        let mut value: Value = serde_json::from_str(PUBLISHED[which].1).unwrap();
        let keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        for (index, new) in changes {
            value[index.get(&keys).as_str()] = new;
        }
        match from_config_json(&value.to_string(), "org/model", "a test") {
            Ok(model) => prop_assert!(model.params() > 0 && model.check().is_ok()),
            Err(error) => prop_assert!(!error.to_string().contains('\n')),
        }
    }
}
