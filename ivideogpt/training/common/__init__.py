"""Parts that tokenizer and transformer training share."""
