"""reference.py FOLDER_A FOLDER_B BOUND < requests: says which tokens an engine that switches weights may not have made.

transformers' model in FP32, not the engine's. Each request is {"prompt", "tokens", "spans": [[version letter, first
token]...], "kv"}: tokens are fed as the engine emitted them, with the weights of the span that each was made with; under
"keep" the keys and values of earlier spans stay, under "recompute" they are made anew. A token is wrong if another one
scores more than BOUND above it. Prints one JSON list per line of stdin: [[index, token, best, margin]...].
"""

from __future__ import annotations

import json
import sys

import torch
import transformers

torch.set_num_threads(1)
models: dict[str, torch.nn.Module] = {}


def model(letter: str, folders: dict[str, str]) -> torch.nn.Module:
    if letter not in models:
        models[letter] = transformers.AutoModelForCausalLM.from_pretrained(folders[letter], dtype=torch.float32).eval()
    return models[letter]


@torch.inference_mode()
def wrong_tokens(request: dict, folders: dict[str, str], bound: float) -> list:
    prompt, tokens = request["prompt"], request["tokens"]
    ids = torch.tensor([prompt + tokens])
    wrong, cache, fed = [], None, 0
    spans = [*request["spans"], [None, len(tokens)]]
    for (letter, first), (_, end) in zip(spans, spans[1:], strict=False):
        if end <= first:
            continue
        if cache is None or request["kv"] == "recompute":
            cache, fed = transformers.DynamicCache(), 0
        until = len(prompt) + end - 1  # the input that makes the span's last token
        made = end - first
        logits = model(letter, folders)(ids[:, fed:until], past_key_values=cache, use_cache=True, logits_to_keep=made).logits[0]
        for index, scores in zip(range(first, end), logits, strict=True):
            best = int(scores.argmax())
            margin = float(scores[best] - scores[tokens[index]])
            if margin > bound:
                wrong.append([index, tokens[index], best, round(margin, 4)])
        fed = until
    return wrong


def main() -> None:
    folders = {"A": sys.argv[1], "B": sys.argv[2]}
    for line in sys.stdin:
        print(json.dumps(wrong_tokens(json.loads(line), folders, float(sys.argv[3]))), flush=True)


if __name__ == "__main__":
    main()
