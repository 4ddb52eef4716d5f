"""PEFT's own merge of an adapter: load, merge_and_unload, save_pretrained. Prints what took the time.

python bench/peft_merge.py MODEL ADAPTER OUT
"""

from __future__ import annotations

import json
import sys
import time


def main() -> None:
    model, adapter, out = sys.argv[1:]
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    begun = time.perf_counter()
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    adapted = PeftModel.from_pretrained(loaded, adapter)
    merging = time.perf_counter()
    merged = adapted.merge_and_unload()
    saving = time.perf_counter()
    merged.save_pretrained(out)
    ended = time.perf_counter()
    took = {"load": merging - begun, "merge": saving - merging, "save": ended - saving}
    print(json.dumps(took))


if __name__ == "__main__":
    main()
