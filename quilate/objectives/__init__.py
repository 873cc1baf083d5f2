"""Pure losses: tensors in, tensors out; no model, tokenizer or trainer inside."""
