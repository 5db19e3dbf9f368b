"""What a rollout costs: `python -m bench.explain` prints it in forward passes, and the peak memory of one over 128 pictures.

ViT-B/16 at 384 px, random weights, CPU time of this process, three rounds turn about.
"""

import resource
import time

import torch

from patchword.core.runtime import describe_device, peak_memory
from patchword.explanation.attention import rollout
from patchword.models.names import create_model

PICTURES, AT_ONCE, ROUNDS = 128, 8, 3


def main() -> None:
    torch.manual_seed(0)
    model = create_model("ViT-B/16", 1000, 384).eval()
    images = torch.randn(PICTURES, 3, 384, 384)
    some = images[:AT_ONCE]
    shares = []
    for _ in range(ROUNDS + 1):  # the first one warms up
        begun = time.process_time()
        with torch.inference_mode():
            for batch in some.split(4):
                model(batch)
        between = time.process_time()
        rollout(model, some)
        shares.append((time.process_time() - between) / (between - begun))
    print(f"rollout: {', '.join(f'{share:.2f}' for share in sorted(shares[1:]))} forward passes")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    rollout(model, images)
    took = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    device = torch.device("cpu")
    print(
        f"{PICTURES} pictures: {took:.0f} s of CPU time, peak {peak_memory(device) / 1e9:.2f} GB ({describe_device(device)})"
    )


if __name__ == "__main__":
    main()
