"""cot-engine: staged reasoning for vision-language models."""
