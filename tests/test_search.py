"""The search: defaults first, and killed and resumed to the same trials."""

import pytest
import tiny

from dsnb import checkpoints, record, search
from dsnb.config import replace


def test_a_killed_search_goes_on_to_the_same_trials(tmp_path, monkeypatch):
    """Claim: the trials depend on the seed alone, not on where a kill fell; each is run once."""
    whole, cut = (tiny.make_root(tmp_path / name) for name in ("whole", "cut"))
    found = search.search(whole, tiny.STUDY)
    real, calls = search.trials.try_out, []

    def dying(root, folder, study, values):
        calls.append(folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(root, folder, study, values)

    monkeypatch.setattr(search.trials, "try_out", dying)
    with pytest.raises(KeyboardInterrupt):
        search.search(cut, tiny.STUDY)
    resumed = search.search(cut, tiny.STUDY)
    assert calls == ["trial-0", "trial-1", "trial-1", "trial-2"]

    def results(answer):
        timed = ("seconds", "cpu_seconds")
        return [
            {key: value for key, value in row.items() if key not in timed}
            for row in answer["tables"]["trials"]
        ]

    assert results(found) == results(resumed)
    assert search.search(cut, tiny.STUDY) == resumed and len(calls) == 4
    _check(found, whole)


def _check(found, root):
    """The first row is the defaults; the headline holds counts and maxima of the table."""
    rows, headline = found["tables"]["trials"], found["headline"]
    assert set(headline) == set(record.HEADLINE["09_search"].split())
    assert headline["trials"] == len(rows) - 1 == 2
    assert rows[0]["default"] and not rows[1]["default"]
    assert rows[0]["width"] == tiny.STUDY.vae.width and rows[0]["psnr_db"] == pytest.approx(
        headline["default_psnr_db"]
    )
    assert headline["best_psnr_db"] == max(row["psnr_db"] for row in rows[1:])
    assert len({row["lr"] for row in rows}) == 3
    assert not checkpoints.listed(root / "runs/search/trial-0")


def test_a_trial_keeps_everything_else_of_the_study():
    """Claim: a trial changes what is searched and its budget, nothing more."""
    values = {"lr": 0.001, "width": 16, "channels": 4, "kl": 1e-7}
    settings = search.shortened(tiny.STUDY, values)
    plan = settings.training
    assert (plan.lr, plan.volumes, plan.validate_every) == (0.001, 16, 16)
    back = replace(tiny.STUDY.vae, width=16, channels=4, kl=1e-7, training=plan)
    assert settings == back and search.defaults(settings) == values
    space = search.space(tiny.STUDY.vae)
    assert set(space) == set(values)
    assert all(space[name]._contains(space[name].to_internal_repr(value))
               for name, value in search.defaults(tiny.STUDY.vae).items())  # fmt: skip
