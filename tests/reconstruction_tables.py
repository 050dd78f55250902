"""Tables as the reconstruction probe leaves them, for the tests of its figures."""

import numpy as np
import pandas as pd

MODELS = ("lab-llava", "a $20 model of quite some length")
PARTS = ("train", "validation", "new")


def means():
    """Of `reconstruction_summary.summary`: two models, each part, every reader and measure."""
    rows = []
    for m, model in enumerate(MODELS):
        for p, part in enumerate(PARTS):
            for by, r2 in (("reconstructor", 0.9 - 0.3 * m - 0.08 * p), ("linear", 0.5 - 0.1 * m), ("mean", -0.01 * p)):
                for measure, value in (("r2", r2), ("mse", 1 - r2), ("cosine", 0.5 + r2 / 2)):
                    rows.append({"model": model, "part": part, "by": by, "measure": measure, "value": value, "n": 1735})
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["value"] - 0.02, high=frame["value"] + 0.015, clusters=900)


def pictures(count=200, models=MODELS):
    """Of `reconstruction.evaluate`: a row a picture."""
    rng = np.random.default_rng(0)
    frames = []
    for m, model in enumerate(models):
        for p, part in enumerate(PARTS):
            r2 = rng.normal(0.8 - 0.2 * m - 0.05 * p, 0.05, count)
            frames.append(pd.DataFrame({"model": model, "part": part, "r2": r2, "key": [f"{part}{i}" for i in range(count)]}))
    return pd.concat(frames, ignore_index=True)


RECONSTRUCTION_FRAMES = {"reconstruction.scores": means, "reconstruction.distributions": pictures}
