"""Claims of stages 6 to 10, on what the norm and its latents are good for: as `claims_norm`."""

from dsnb.pages.wording import Said, choose, pick, spell, within


def discriminate(h: dict, t: dict) -> Said:
    title = choose(
        h["auc_ds_gain_ci"], 0,
        "Estimated region volumes tell DS better than latents do",
        "Latents are not shown to tell DS better than estimated region volumes",
        "Latents tell DS better than estimated region volumes",
    )  # fmt: skip
    return title, (
        f"The AUROC is {spell(h['auc_ds'])} from latents and {spell(h['auc_ds_volumes'])} from "
        f"volumes, a gain of {within(h['auc_ds_gain'], *h['auc_ds_gain_ci'])}; age, sex, site and "
        f"motion alone reach {spell(h['auc_ds_confounds'])}."
    )


def faint(h: dict, t: dict) -> Said:
    title = choose(
        h["hard_gain_ci"], 0,
        "When the disease is faint, region volumes beat latents",
        "When the disease is faint, latents are not shown to beat region volumes",
        "When the disease is faint, latents beat region volumes",
    )  # fmt: skip
    return title, (
        f"Balanced accuracy is {spell(h['bacc_ds_hard'])} from latents and "
        f"{spell(h['bacc_ds_hard_volumes'])} from volumes; the difference of their AUROCs lies in "
        f"{spell(h['hard_gain_ci'])} (95 %). What the network of page 05 sees reaches "
        f"{spell(h.get('bacc_ds_hard_undone'))}."
    )


def staging(h: dict, t: dict) -> Said:
    title = choose(
        h["stage_gain_ci"], 0,
        "Latents make the staging of Alzheimer's disease worse",
        "Latents are not shown to add to age, sex and volumes in staging",
        "Latents add to age, sex and volumes in staging",
    )  # fmt: skip
    return title, (
        f"They add {within(h['stage_gain'], *h['stage_gain_ci'])} to the AUROC of Alzheimer stage; "
        f"what the network of page 05 sees adds {spell(h.get('stage_gain_undone'))}, in "
        f"{spell(h.get('stage_gain_undone_ci'))}."
    )


def subtypes(h: dict, t: dict) -> Said:
    rows = t.get("strata") or []
    if not rows:
        raise LookupError(t.get("reasons", {}).get("strata", "that the table strata is empty"))
    called = sum(bool(row["structured"]) for row in rows)
    title = "Subtypes are called in some features" if called else "No subtypes of DS are found"
    return title, (
        f"Structure beyond one Gaussian is called in {called} of {len(rows)} tests; of planted "
        f"cohorts without subtypes, a share of {spell(h.get('strata_false_discovery'))} is called."
    )


def sharpness(h: dict, t: dict) -> Said:
    drawn, raised = h["spectrum_error_db_decoded"], h["spectrum_error_db"]
    title = "Synthetic brains lack the fine detail of scans"
    if raised <= 1:
        title = "A decoder draws blurred brains; with detail raised, the spectrum is that of scans"
        title = title if drawn > 1 else "Synthetic brains have the spectrum of scans"
    return title, (
        f"The spectrum is off by {spell(drawn)} dB as decoded and by {spell(raised)} dB once each "
        "frequency is raised (bar: 1). Raised power is no new anatomy."
    )


def guidance(h: dict, t: dict) -> Said:
    rows = [(row["guidance"], row["effect_slope"]) for row in t.get("guidance") or []]
    rows = sorted(row for row in rows if None not in row)
    if not rows:
        raise LookupError("that the table guidance is empty")
    strongest, slope = rows[-1]
    word = "exaggerates" if slope > 1.25 else "does not exaggerate"
    at = dict(rows).get(h["guidance"])
    return f"Strong guidance {word} the disease", (
        f"At guidance {spell(strongest)} the effect of DS is {spell(slope)} times the one in "
        f"validation people, at the chosen {spell(h['guidance'])} it is {spell(at)} times."
    )


def samplers(h: dict, t: dict) -> Said:
    chosen = {"sampler": "euler", "steps": h["sampler_steps"]}
    (kept,) = pick(t, "steps", "sd_ratio", **chosen)
    (ddim,) = pick(t, "steps", "sd_ratio", **chosen | {"sampler": "ddim"})
    word = "keep" if abs(kept - 1) <= 0.05 else "change"
    return f"Few steps {word} the spread of people", (
        f"{h['sampler_steps']} steps of the rectified flow leave {spell(kept)} times the spread of "
        f"training people's components, as many of DDIM {spell(ddim)} times."
    )


def morphology(h: dict, t: dict) -> Said:
    size = choose(h["effect_slope_ci"], 1, "but too faint", "and size", "but too strong")
    title = choose(
        h["effect_correlation_ci"], 0,
        "The synthetic effect of DS runs against the real one",
        "The synthetic effect of DS is not shown to resemble the real one",
        f"The synthetic effect of DS has the right pattern {size}",
    )  # fmt: skip
    if not h["regions_equivalent"]:
        title += "; no region is shown to be equivalent"
    copies = [r["equivalent"] for r in t.get("ceiling") or [] if r["people"] == "training"]
    return title, (
        f"Over ten regions the correlation is "
        f"{within(h['effect_correlation'], *h['effect_correlation_ci'])} and the slope "
        f"{within(h['effect_slope'], *h['effect_slope_ci'], ' (')}; {h['regions_equivalent']} "
        f"are equivalent within 0.2 d. Had the training people been the sample, it would be "
        f"{spell(copies[0] if copies else None)}."
    )


def detail(h: dict, t: dict) -> Said:
    kid, se, bound = pick(t, "realism", "kid kid_se floor", features="detail", group="DS")
    word = "gives samples away" if kid - 1.96 * se > bound else "is not shown to tell samples"
    return f"Fine detail {word}", (
        f"In fine detail the distance to real people with DS is "
        f"{within(kid, kid - 1.96 * se, kid + 1.96 * se)}; two halves of real people differ by "
        f"{spell(bound)}. In voxels it is {spell(h['kid'])} beside {spell(h['kid_floor'])}."
    )


def utility(h: dict, t: dict) -> Said:
    rows = [r for r in t.get("augmentation") or [] if None not in (r.get("low"), r.get("high"))]
    if not rows:
        raise LookupError("that the table augmentation is empty")
    title = "Synthetic people are not shown to help a classifier"
    if any(row["low"] > 0 for row in rows):
        title = "Synthetic people help a classifier that has few real ones"
    elif any(row["high"] < 0 for row in rows):
        title = "Synthetic people harm a classifier"
    return title, (
        "Trained on them alone, balanced accuracy is "
        f"{within(h['tstr_bacc'], *h['tstr_bacc_ci'])}, on real people "
        f"{within(h['trtr_bacc'], *h['trtr_bacc_ci'], ' (')}."
    )


def privacy(h: dict, t: dict) -> Said:
    doors = {True: "may leave", False: "may not leave"}
    samples, weights = (doors.get(h[key], h[key]) for key in ("release", "release_weights"))
    return f"Samples: {samples}; weights: {weights}", (
        f"The strongest attack on samples has an AUROC of {spell(h['attack_auc'])} (upper 95 % "
        f"bound {spell(h['attack_auc_upper'])}, bar 0.60), on weights a bound of "
        f"{spell(h['weights_attack_auc_upper'])}; an over-fitted model is caught at "
        f"{spell(h['overfit_attack_auc'])}. A pass means no evidence of copying "
        "under these tests, never privacy."
    )


def searched(h: dict, t: dict) -> Said:
    gain = pick(t.get("search_ledger") or {}, "gain_db", "mean low high")
    found = {"grid": "search", "variant": "found", "measure": "psnr_db"}
    again = pick(t, "grids", "difference holm_low holm_high", **found)
    title = choose(
        again[1:], 0,
        "What a search finds is worse than the defaults on unseen people",
        "What a search finds is not shown to beat the defaults on unseen people",
        "What a search finds beats the defaults on unseen people",
    )  # fmt: skip
    return title, (
        f"On the people who chose, the best of {h['trials']} trials gains {within(*gain)} dB; "
        f"trained again and judged on others, "
        f"{within(*again, ' dB (corrected for all comparisons: ')}."
    )


def settings(h: dict, t: dict) -> Said:
    rows = [row for row in t.get("grids") or [] if row.get("p_holm") is not None]
    if not rows:
        raise LookupError("that the table grids is empty")
    kept = [row for row in rows if row["p_holm"] < 0.05]
    title = "Some settings are shown to matter" if kept else "No setting is shown to matter"
    return title, (
        f"Of {len(rows)} differences from the defaults, {len(kept)} survive Holm's correction; "
        "with three runs each, what is not shown may still be there."
    )


def same_answer(h: dict, t: dict) -> Said:
    same = h["parity_error"] <= 1e-6 and h["resume_identical"]
    title = "More processes, or a resumed run, give the same answer"
    title = title if same else "More processes, or a resumed run, change the answer"
    return title, (
        f"Over {len(t.get('parity') or [])} steps losses differ by a share of at most "
        f"{spell(h['parity_error'])} (bar: 1e-06); a resumed run equals the straight one to the "
        f"bit: {spell(h['resume_identical'])}."
    )


def second_process(h: dict, t: dict) -> Said:
    columns = "efficiency low high rounds"
    shared, strong = (pick(t, "efficiency", columns, kind=kind) for kind in ("shared", "strong"))
    word = choose(shared[1:3], 0.95, "cost speed", "keep the speed", "keep the speed")
    return f"Two processes on the same cores {word} of one", (
        f"They reach {within(*shared[:3])} times the volumes a second of one process with all "
        f"cores, and {within(*strong[:3], ' (')} of twice one core's ({shared[3]} rounds)."
    )


def larger_batch(h: dict, t: dict) -> Said:
    seen = {}
    for row in t.get("batches") or []:
        seen.setdefault(row["batch"], []).append(row["volumes"] if row["reached"] else None)
    whole = {batch: sum(runs) / len(runs) for batch, runs in seen.items() if None not in runs}
    if len(whole) < 2:
        raise LookupError("that fewer than two batches always reached the target")
    small, large = min(whole), max(whole)
    ratio = whole[large] / whole[small]
    word = "needs more volumes" if ratio > 1.1 else "needs no more volumes"
    late = [str(batch) for batch in sorted(seen) if batch not in whole]
    return f"A larger batch {word} to the same quality", (
        f"Batch {large} needs {spell(ratio)} times the volumes of batch {small}"
        + (f"; batch {', '.join(late)} did not always arrive." if late else ".")
    )


def projected(h: dict, t: dict) -> Said:
    rows = t.get("cluster") or []
    title = "Speed on several nodes was not measured: what is drawn for it is a projection"
    if any((row.get("nodes") or 1) > 1 for row in rows):
        title = "Speed on several nodes was measured"
    return title, (
        f"{len(rows)} runs on a cluster are in the ledger. The equation behind the projection "
        f"misses held-out sums of gradients by {spell(h['model_error_pct'])} % (median)."
    )
