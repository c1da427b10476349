"""The bundled model's files: weights, tokenizer, processor, and its card, README.md."""
