"""What the numbers of a calibration are, a line each."""

from __future__ import annotations

MEANING = {
    "verdict": "what the tests say, at 5 % over all of them together (Holm)",
    "within": "whether the coverage of the intervals at the level is within 5 points of it",
    "what": "what the reading is",
    "p_value": "p-value of the test; NaN where it does not apply, and with fewer than 20 replicates",
    "p_adjusted": "p-value adjusted for the number of tests (Holm)",
    "num_replicates": "replicates with entries to compare",
    "entries": "entries compared, mean over replicates",
    "certain": "entries whose truth and draws are all the same, mean over replicates; they have no rank",
    "rank_histogram": "frequency of randomised ranks of the truth among the draws; 1 if uniform",
    "rank_histogram_se": "standard error of it between replicates",
    "ecdf_difference": "distribution function of the ranks minus the uniform one",
    "ecdf_lower": "lower end of the band that holds all of ecdf_difference with probability 95 % if calibrated",
    "ecdf_upper": "upper end of that band",
    "width_factor": "the draws would have to spread this many times as far about their median; above 1: too narrow",
    "shift": "median of the truth about the centre of the draws, in their standard deviations",
    "coverage": "share of truths in the central mass of the draws, mean over replicates",
    "interval_level": "mass that the intervals state",
    "interval_coverage": "share of truths between lower and upper, mean over replicates",
    "replicate_coverage": "share of truths inside at the level in each replicate: intervals, or else draws",
    "stated": "mean stated probability by bin",
    "observed": "share of true statements by bin",
    "observed_se": "standard error of observed, between replicates",
    "bin_count": "statements by bin, all replicates together",
    "brier": "mean squared difference between stated probability and truth",
    "brier_se": "standard error of it between replicates",
    "brier_base": "what stating the share of true ones everywhere would get",
    "calibration_error": "mean difference between stated and observed over statements, by bin",
    "calibration_error_se": "standard error of it between replicates",
    "calibration_error_chance": "what it would be by chance if probabilities were right",
    "guide_khat": "Pareto k of the whole guide; above 0.7 it misses mass of the joint posterior; NaN without a guide",
    "failure": "why a replicate has no result; empty if it has",
}
ENDS = {
    "se": "standard error of {}, between replicates",
    "low": "lower end of the 95 % interval of {}",
    "high": "upper end of the 95 % interval of {}",
}


def meaning_of(name: str) -> str:
    """Meaning of a variable of the result of `calibrate`."""
    if name in MEANING:
        return MEANING[name]
    start, _, end = name.rpartition("_")
    return ENDS[end].format(start)
