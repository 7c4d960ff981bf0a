"""A small target from text: its tokenizer, what it reads, and the training loop behind ``nla pretrain``."""
