from byte_llama import checkpoint, engine, llama, tokenizer  # noqa: F401
