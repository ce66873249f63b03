"""Names of the files that a checkpoint's tokenizer is kept in, whatever its kind."""

TOKENIZER_NAME = "tokenizer.json"
VOCAB_NAME = "vocab.json"
MERGES_NAME = "merges.txt"
ADDED_NAME = "added_tokens.json"
SPECIAL_NAME = "special_tokens_map.json"
SETTINGS_NAME = "tokenizer_config.json"
