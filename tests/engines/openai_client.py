"""openai_client.py URL: reads prompts from stdin and prints what a server answers to OpenAI's own client, as JSON, one a line."""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0)
for prompt in sys.stdin:
    message = [{"role": "user", "content": prompt.strip()}]
    answer = client.chat.completions.create(model="m", messages=message, max_tokens=16, temperature=0.0)
    print(json.dumps([answer.choices[0].message.content, answer.choices[0].finish_reason]), flush=True)
