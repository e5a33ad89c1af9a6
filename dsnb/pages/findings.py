"""Findings: from a stage's numbers to claims in words, chosen by rule, whichever way they fall.

Each stage has a fixed list of questions, so that a page can glue `finding_1` on any cohort; what a
run cannot answer becomes "not computed" and the reason.
"""

from dsnb.pages import claims_norm as norm
from dsnb.pages import claims_use as use

# Of each stage: what a finding is about, the headline values it cannot do without, and its words.
FINDINGS = {
    "01_cohort": (
        ("Who is in the study", "subjects euploid ds", norm.who),
        ("Whether the disease is as wanted", "target_error_points folded_voxels", norm.reached),
        ("Whether people vary as real people do", "", norm.realistic),
    ),
    "02_volumes": (
        ("What was prepared", "prepared excluded", norm.kept_all),
        ("What a native scan loses", "native_error", norm.native),
        ("What a new scanner does", "new_site_fpr", norm.new_site),
        ("What harmonising can fake", "combat_leak_auc", norm.combat),
    ),
    "03_vae": (
        ("Reconstruction beside components", "psnr_db_mean", norm.redraws),
        ("Reconstruction beside the noise", "psnr_db psnr_db_floor", norm.floor),
        ("Region volumes", "region_error_pct", norm.volumes_kept),
        ("Beside MONAI's networks", "gain_db_over_monai_shrunk", norm.beside_monai),
    ),
    "04_latents": (
        ("Traces of training", "leak_floor_auc", norm.leak),
        ("More like DS", "ds_like_correlation_ci ds_like_slope_ci", norm.towards),
        ("Between two people", "", norm.middles),
    ),
    "05_anomaly": (
        (
            "The deep norm beside plain statistics",
            "lift_ratio_ci best_rival",
            norm.deep_against_plain,
        ),
        ("Norms beside maps that know nobody", "lift_best_null", norm.against_nobody),
        ("Who is flagged", "euploids_flagged power_at_q05", norm.errors),
        ("Group maps", "", norm.in_groups),
    ),
    "06_strata": (
        (
            "DS against euploid",
            "auc_ds auc_ds_volumes auc_ds_gain auc_ds_gain_ci",
            use.discriminate,
        ),
        ("A faint disease", "bacc_ds_hard bacc_ds_hard_volumes hard_gain_ci", use.faint),
        ("Alzheimer stage", "stage_gain stage_gain_ci", use.staging),
        ("Subtypes", "", use.subtypes),
    ),
    "07_diffusion": (
        ("Sharpness", "spectrum_error_db spectrum_error_db_decoded", use.sharpness),
        ("Guidance", "guidance", use.guidance),
        ("Steps", "sampler_steps", use.samplers),
    ),
    "08_fidelity": (
        ("Morphology", "effect_correlation_ci effect_slope_ci regions_equivalent", use.morphology),
        ("Fine detail", "kid kid_floor", use.detail),
        ("Utility", "tstr_bacc tstr_bacc_ci trtr_bacc trtr_bacc_ci", use.utility),
        ("Privacy", "release release_weights attack_auc attack_auc_upper", use.privacy),
    ),
    "09_search": (
        ("A search", "trials best_psnr_db", use.searched),
        ("One setting at a time", "", use.settings),
    ),
    "10_scaling": (
        ("The same answer", "parity_error resume_identical", use.same_answer),
        ("A second process", "", use.second_process),
        ("A larger batch", "", use.larger_batch),
        ("Several nodes", "model_error_pct", use.projected),
    ),
}


def tell(results: dict) -> list[dict]:
    """Return a stage's findings, each a title and a text without markup, from its results."""
    headline, tables = results["headline"], results["tables"]
    reasons, found = tables.get("reasons", {}), []
    for topic, needs, say in FINDINGS[results["stage"]]:
        absent = [key for key in needs.split() if headline.get(key) is None]
        try:
            if absent:
                why = reasons.get(absent[0]) or "this run has no such number"
                raise LookupError(f"{absent[0]}: {why}")
            title, text = say(headline, tables)
        except LookupError as lack:
            title, text = f"{topic}: not computed", f"The reason is {lack.args[0]}."
        found.append({"title": title, "text": text})
    return found


def glued(results: dict) -> dict[str, str]:
    """Return what a page glues of its findings: `finding_N` and `finding_N_text`."""
    keys = {}
    for number, found in enumerate(tell(results), 1):
        keys |= {f"finding_{number}": found["title"], f"finding_{number}_text": found["text"]}
    return keys
