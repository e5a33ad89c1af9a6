"""Claims of stages 1 to 5, from people to the norm and its maps: a function says one thing.

Each reads a headline and tables and returns a title and a text, whichever way the numbers fall.
Thresholds ("bar") are the study's own. A LookupError tells what the run lacks.
"""

from dsnb.pages.wording import Said, choose, pct, pick, spell, within


def who(h: dict, t: dict) -> Said:
    if h["euploid"] + h["ds"] > h["subjects"]:  # scans of the same people
        return "Nobody in this cohort has Down syndrome; the disease is planted on euploids", (
            f"{h['subjects']} people were scanned, {h['euploid']} of them euploid; {h['ds']} "
            "further scans are theirs with the phantom's disease field planted."
        )
    title = "The cohort holds both groups"
    if not h["ds"]:
        title = "Nobody in this cohort has Down syndrome"
    elif not h["euploid"]:
        title = "Nobody in this cohort is euploid: there is no norm"
    return title, f"{h['subjects']} people were scanned: {h['euploid']} euploid, {h['ds']} with DS."


def reached(h: dict, t: dict) -> Said:
    gap = h["target_error_points"]
    done = "is reached" if gap <= 1 and not h["folded_voxels"] else "is missed in places"
    return f"The change of volume that we asked for {done}", (
        f"The mean of a region misses its target by at most {spell(gap)} percentage points at any "
        f"stage (bar: 1), and {h['folded_voxels']} voxels fold."
    )


def realistic(h: dict, t: dict) -> Said:
    sides = t.get("realism") or {}
    if set(sides) < {"phantom", "open scans"}:
        raise LookupError("that no comparison with open scans stands on this page")
    ours, real = sides["phantom"], sides["open scans"]
    ratio = ours["rms"] / real["rms"]
    word = "as much as" if 0.9 <= ratio <= 1.1 else "less than" if ratio < 0.9 else "more than"
    return f"The phantom's people differ from one another {word} people in open scans do", (
        f"The root mean square departure from the mean is {spell(ours['rms'])}, in open scans "
        f"{spell(real['rms'])} ({real['people']} people a side); the median signal over noise is "
        f"{spell(ours['snr_median'])} beside {spell(real['snr_median'])}."
    )


def kept_all(h: dict, t: dict) -> Said:
    title = "Scans were left out" if h["excluded"] else "Every scan was prepared"
    return title, (
        f"{h['prepared']} volumes were prepared and {h['excluded']} left out, each with the code "
        f"of its fault; {spell(h.get('flagged'))} are flagged for a look."
    )


def native(h: dict, t: dict) -> Said:
    word = "little" if h["native_error"] < 0.05 else "more than a twentieth"
    return f"Preparing a native scan costs {word} of its volume's truth", (
        f"The logarithm of the growth to the template errs by {spell(h['native_error'])} (root "
        f"mean square over {len(t.get('native') or [])} scans of known position; bar: 0.05)."
    )


def new_site(h: dict, t: dict) -> Said:
    raw = pick(t, "sites", "fpr fpr_low fpr_high", entanglement=0.0, method="as it is")
    known = {"entanglement": 0.0, "method": "re-centred, rescaled", "known": 50}
    fixed = pick(t, "sites", "fpr fpr_low fpr_high", **known)
    title = "A new scanner is not shown to flag too many euploids"
    if raw[1] > 0.05:
        title = "A new scanner flags too many euploids, even once some of them are known"
        if fixed[1] <= 0.05 <= fixed[2]:
            title = "A new scanner flags too many euploids, until some of them are known"
    return title, (
        f"As it is, {within(*pct(*raw), ' % (range of 95 % of draws: ')} of euploids' regions are "
        f"flagged where 5 % should be; re-centred and rescaled on 50 known euploids, "
        f"{within(*pct(*fixed), ' % (')}."
    )


def combat(h: dict, t: dict) -> Said:
    told = {"entanglement": 1.0, "method": "ComBat on everybody, group told"}
    auc, low, high = pick(t, "sites", "auc_null auc_null_low auc_null_high", **told)
    no = "Harmonising with the group told is not shown to fake a difference"
    yes = "Harmonising with the group told fakes a difference between groups"
    return choose([low, high], 0.5, no, no, yes), (
        "With permuted labels and every group at a site of its own, ComBat that is told the group "
        f"leaves an AUROC of {within(auc, low, high, ' (range of 95 % of draws: ')}; it should be "
        "0.5. Re-centring and ComBat inside the fold refuse."
    )


def redraws(h: dict, t: dict) -> Said:
    rows = {}
    for model in ("lean", "pca"):
        people, mean, sd = pick(t, "psnr", "people mean_db sd_db", model=model)
        half = 1.96 * sd / people**0.5
        rows[model] = mean, mean - half, mean + half
    (ours, low, high), pca = rows["lean"], rows["pca"]
    word = "better than" if low > pca[2] else "worse than" if high < pca[1] else "about as well as"
    return f"The VAE redraws unseen brains {word} principal components", (
        f"PSNR is {within(ours, low, high)} dB beside {within(*pca, ' (')} dB of components and "
        f"{spell(h['psnr_db_mean'])} dB of the mean brain ({people} unseen euploids)."
    )


def floor(h: dict, t: dict) -> Said:
    gap = h["psnr_db_floor"] - h["psnr_db"]
    title = "Reconstruction stays far below what the scanner's noise would allow"
    if gap <= 1.5:
        title = "Reconstruction comes near what the scanner's noise allows"
    return title, (
        f"A perfect model would reach {spell(h['psnr_db_floor'])} dB; {spell(gap)} dB are missing "
        "(bar: 1.5)."
    )


def volumes_kept(h: dict, t: dict) -> Said:
    word = "survive" if h["region_error_pct"] <= 1.5 else "do not all survive"
    return f"Region volumes {word} reconstruction", (
        f"Regions of unseen people change by {spell(h['region_error_pct'])} % on average "
        "(bar: 1.5)."
    )


def beside_monai(h: dict, t: dict) -> Said:
    columns = "mean low high seeds"
    gain = pick(t, "speed_gains", columns, key="gain_db_over_monai_shrunk")
    stock = pick(t, "speed_gains", columns, key="gain_db_over_monai")
    times = pick(t, "speed_gains", columns, key="time_ratio_to_20db")
    no = "is not shown to beat"
    title = choose(gain[1:3], 0, "loses to", no, "beats")
    return f"At equal CPU time the lean VAE {title} MONAI's AutoencoderKL", (
        f"It is {within(*gain[:3], ' dB (seeds: ')} above a shrunken AutoencoderKL and "
        f"{within(*stock[:3], ' dB (')} above one of the tutorial's widths; it reaches 20 dB "
        f"{within(*times[:3], ' times (')} sooner than the shrunken one ({gain[3]} seeds)."
    )


def leak(h: dict, t: dict) -> Said:
    auc, low, high, unseen, seen = pick(t, "leak_floor", "auc low high unseen seen")
    no, yes = "are not shown to betray", "betray"
    return f"Latents {choose([low, high], 0.5, yes, no, yes)} who trained the VAE", (
        f"{unseen} unseen euploids are told from {seen} training people with an AUROC of "
        f"{within(auc, low, high)}; 0.5 is guessing."
    )


def towards(h: dict, t: dict) -> Said:
    no = "Moving a latent towards DS is not shown to change regions as DS does"
    size = choose(h["ds_like_slope_ci"], 1, "by too little", "by as much", "by too much")
    yes = f"Moved towards DS, a brain's regions change as DS differs, {size}"
    return choose(h["ds_like_correlation_ci"], 0, no, no, yes), (
        "Over regions, the change of moved euploids and the difference of unseen people correlate "
        f"at {within(h['ds_like_correlation'], *h['ds_like_correlation_ci'])}, with a slope of "
        f"{within(h['ds_like_slope'], *h['ds_like_slope_ci'], ' (')}."
    )


def middles(h: dict, t: dict) -> Said:
    columns = "edge edge_low edge_high"
    ours = pick(t, "midpoints", columns, **{"middle of": "latents"})
    plain = pick(t, "midpoints", columns, **{"middle of": "volumes"})
    word = "about as sharp as"
    if ours[1] > plain[2] or ours[2] < plain[1]:
        word = "sharper than" if ours[0] > plain[0] else "less sharp than"
    return f"Half-way between two people, latents draw a brain {word} their average", (
        f"The middle keeps {within(*ours)} of its ends' edge energy, the plain mean of the two "
        f"volumes {within(*plain, ' (')}."
    )


def deep_against_plain(h: dict, t: dict) -> Said:
    lift = pick(t, "norms", "lift lift_low lift_high people", primary=True)
    rival = pick(t, "norms", "lift lift_low lift_high", norm=h["best_rival"])
    title = choose(
        h["lift_ratio_ci"], 1,
        "Plain statistics find a patient's changed voxels better than the deep norm",
        "The deep norm is not shown to beat plain statistics",
        "The deep norm finds a patient's changed voxels better than plain statistics",
    )  # fmt: skip
    return title, (
        f"Lift over chance is {within(*lift[:3])}, that of the best plain rival "
        f"({h['best_rival']}) {within(*rival, ' (')}; their ratio lies in "
        f"{spell(h['lift_ratio_ci'])} ({lift[3]} people). By gain, which counts only what tells a "
        f"patient from a euploid, it lies in {spell(h.get('gain_ratio_ci'))}."
    )


def against_nobody(h: dict, t: dict) -> Said:
    names = "lift", "lift_low", "lift_high"
    rows = [r for r in t.get("norms") or [] if None not in (r.get(name) for name in names)]
    nulls = [row for row in rows if row["norm"].startswith("sd_map")]
    real = [row for row in rows if row not in nulls and row["norm"] != "labelled"]
    if not (nulls and real):
        raise LookupError("that the table norms lacks a map without a subject")
    null, best = (max(side, key=lambda row: row["lift"]) for side in (nulls, real))
    title = "No norm is shown to rank changed voxels better than a map that knows nobody"
    if null["lift_low"] > best["lift_high"]:
        title = "A map that knows nobody ranks changed voxels better than every norm"
    elif best["lift_low"] > null["lift_high"]:
        title = "The best norm ranks changed voxels better than a map that knows nobody"
    return title, (
        f"A map of where healthy brains vary most ({null['norm']}) lifts by "
        f"{within(*(null[n] for n in names))}, the best norm ({best['norm']}) by "
        f"{within(*(best[n] for n in names), ' (')}: lift alone is no proof that a map saw its "
        "person, hence the gain beside it."
    )


def errors(h: dict, t: dict) -> Said:
    healthy, sham, ds = (
        pick(t, "flagged", "share low high people", people_of=name)
        for name in ("euploid test", "sham", "DS test")
    )
    (some,) = pick(t, "flagged", "flagged", people_of="euploid test")
    silent = "almost no changed voxel is" if h["power_at_q05"] < 0.05 else "changed voxels are"
    power = pick(t, "power", "mean mean_low mean_high")
    left = f"{some} of {healthy[3]} healthy people {'is' if some == 1 else 'are'} flagged"
    left += ", too many" * (healthy[1] > 0.05)
    return f"{left}, and {silent} found", (
        f"{within(*pct(*healthy[:3]), ' % (95 % interval ')} of unseen euploids have any voxel at "
        f"q < 0.05 (bar: 5 %), {within(*pct(*sham[:3]), ' % (')} of shams and "
        f"{within(*pct(*ds[:3]), ' % (')} of people with DS; {within(*pct(*power), ' % (')} of "
        "the changed voxels are found."
    )


def in_groups(h: dict, t: dict) -> Said:
    r, low, high, people = pick(
        t, "stages", "rank_correlation low high people", stage="asymptomatic"
    )
    (share,) = pick(t, "groups", "pfwe_share", contrast="DS")
    no = "The mean map of people with DS is not shown to follow the true change"
    yes = "In the mean of a group, maps follow the true change of regions"
    return choose([low, high], 0, no, no, yes), (
        f"Over regions the mean departure and the true change have a rank correlation of "
        f"{within(r, low, high)} ({people} people without a sign of Alzheimer's disease); "
        f"{spell(100 * share)} % of voxels pass a threshold corrected for all of them."
    )
