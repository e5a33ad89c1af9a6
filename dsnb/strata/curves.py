"""How many people must teach before a latent pays? DS against euploid over their number."""

import numpy as np
import pandas as pd

from dsnb import record
from dsnb.config import Strata
from dsnb.strata import crossval
from dsnb.strata.crossval import Features
from dsnb.strata.people import People

LEARNERS = (20, 40, 80, 120, 160, 200)  # half of them with DS
DRAWS = 10  # of who teaches and who is judged
HELD = 3  # a third is judged


def learn(people: People, sets: dict[str, Features], settings: Strata) -> list[dict]:
    """Return a row a set and number of learners: mean AUROC, and the range of 95 % of the draws.

    The same people teach and are judged in every set; a number that a draw cannot give is left out.
    """
    found = []
    for draw in range(DRAWS):
        folds = crossval.split(people.target, people.families, HELD, settings.seed + draw)
        rng, (train, test) = np.random.default_rng([settings.seed, draw]), folds[0]
        groups = [rng.permutation(train[people.target[train] == group]) for group in (0, 1)]
        for count in LEARNERS:
            if min(map(len, groups)) < count // 2:
                continue
            some = np.concatenate([group[: count // 2] for group in groups])
            for name, features in sets.items():
                answer = crossval.fit(
                    features, people.target, people.families, some, test, settings
                )
                auc = crossval.auroc(people.target[test] == 1, answer[:, 1])
                found.append({"features": name, "learners": count, "auc": auc})
        record.progress("learning curves", draw + 1, DRAWS)
    if not found:
        return []
    draws = pd.DataFrame(found).groupby(["features", "learners"], sort=False)["auc"]
    table = pd.DataFrame({
        "auc": draws.mean(), "low": draws.quantile(0.025), "high": draws.quantile(0.975)
    })  # fmt: skip
    return table.reset_index().to_dict("records")
