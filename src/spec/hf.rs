//! Hugging Face config.json to ModelSpec.
