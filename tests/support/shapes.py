"""Shapes of published models, as `model.shape` takes them."""

QWEN = (
    "{model_type: qwen2, vocab_size: 152064, hidden_size: 3584, intermediate_size: 18944, num_hidden_layers: 28, "
    "num_attention_heads: 28, num_key_value_heads: 4, head_dim: 128, tie_word_embeddings: false}"
)
GEMMA_27B = (
    "{model_type: gemma3_text, vocab_size: 262208, hidden_size: 5376, intermediate_size: 21504, num_hidden_layers: 62, "
    "num_attention_heads: 32, num_key_value_heads: 16, head_dim: 128, tie_word_embeddings: true}"
)
