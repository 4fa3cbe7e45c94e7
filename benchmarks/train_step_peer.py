"""The side of transformers and torch in benchmarks/train_step.py: runs in the peers' environment, one request a line.

A request is {"dtype": "float32" | "bfloat16", "steps": number of steps}; the answer is {"seconds": ..., "loss": the
last one}. bfloat16 is torch's autocast: weights and optimizer stay float32. Between requests it uses no processor.
"""

import json
import sys
import time

import torch
import transformers


def main() -> None:
    shape, num_cores = json.loads(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(num_cores)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=shape["vocab_size"],
        n_positions=shape["length"],
        n_embd=shape["d_model"],
        n_layer=shape["num_layers"],
        n_head=shape["num_heads"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = transformers.GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.randint(shape["vocab_size"], (shape["num_rows"], shape["length"]))
    print(json.dumps({"parameters": model.num_parameters()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        for _ in range(request["steps"]):
            with torch.autocast("cpu", torch.bfloat16, enabled=request["dtype"] == "bfloat16"):
                loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        last = float(loss)
        print(json.dumps({"seconds": time.perf_counter() - start, "loss": last}), flush=True)


if __name__ == "__main__":
    main()
