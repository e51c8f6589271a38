"""Write ``expected.npz`` with transformers: ``python -m tests.models.make_expected``."""

import json

import numpy as np

from tests.models import peer, tiny


def main() -> None:
    import transformers

    shapes, arrays = {}, {}
    for case in tiny.CASES:
        model = peer.build(case)
        # named_parameters lists a tied weight once, under the name that is stored.
        shapes[case] = {name: list(p.shape) for name, p in model.named_parameters()}
        _, mask = tiny.inputs(case)
        arrays[case] = peer.outputs(case, model)[mask][:, :: tiny.STRIDE]
        print(f"{case}: standard deviation {arrays[case].std():.2f}")
    versions = np.array(f"transformers {transformers.__version__}")
    np.savez_compressed(
        tiny.FIXTURE, shapes=np.array(json.dumps(shapes)), versions=versions, **arrays
    )
    print(f"{tiny.FIXTURE}: {tiny.FIXTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
