"""tokenizer.py GGUF FOLDER: writes the tokenizer that a GGUF file carries as a checkpoint's."""

import sys
from pathlib import Path

import transformers

gguf = Path(sys.argv[1])
transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(sys.argv[2])
