"""What the columns of tables are called on a page, and labels as figures have room for them."""

import re
from collections.abc import Sequence

NAMES = {
    "final_test_accuracy": "final accuracy",
    "best_test_accuracy": "best accuracy",
    "selected_test_accuracy": "accuracy at the epoch chosen on validation data",
    "generalization_gap": "generalization gap",
    "mean_stability": "mean stability",
    "hessian_trace": "Tr(H), curvature (nats)",
    "hessian_trace_top": "sum of leading eigenvalues (nats)",
    "gradient_second_moment": "Tr(C), gradients (nats²)",
    "gradient_noise_scale": "noise scale (examples)",
    "gradient_noise": "trace of the gradients' covariance",
    "tic": "TIC proxy Tr(C) / Tr(H)",
    "tic_leading": "Tr(C) / sum of leading eigenvalues",
    "epsilon_flatness": "ε-flatness (larger is flatter)",
    "top_eigenvalue": "largest eigenvalue (nats)",
    "sharpness_worst": "largest rise in the ball (nats)",
    "sharpness_keskar": "Keskar's sharpness (%)",
    "sharpness_average": "mean rise under noise (nats)",
    "alpha": "alpha (recall distortion)",
    "alpha_split_half": "alpha by split halves",
    "barrier_error": "barrier, test error",
    "barrier_train_error": "barrier, training error",
    "barrier_loss": "barrier, test loss (nats)",
    "live_weights": "live weights",
    "normality_ks": "KS distance to N(0, 1), mean",
    "normality_ks_worst": "KS distance to N(0, 1), largest",
    "normality_skewness": "|skewness| of activations, mean",
    "normality_excess_kurtosis": "excess kurtosis of activations, mean",
    "prunability": "prunability (loss x 1.1)",
    "prunability_monotone": "prunability (monotone)",
    "prunability_area": "prunability (area)",
    "prunability_relative1": "prunability (loss x 2)",
    "prunability_absolute": "prunability (loss + 0.1)",
    "prunability_layerwise": "prunability (by layer)",
    "prunability_random": "prunability (random masks)",
    "prunability_count": "prunability (weights kept)",
    "l2_norm": "L2 norm",
    "distance_to_init": "distance to start",
    "kernel_distance_to_init": "distance to start, folded kernels",
    "log_spectral_product_reshaped": "log spectral product (reshaped)",
    "frobenius_over_spectral": "Frobenius over spectral",
    "log_frobenius_product": "log Frobenius product",
    "log_frobenius_over_margin": "log Frobenius over margin",
    "inverse_margin": "1 / margin²",
    "pac_bayes_flatness": "PAC-Bayes 1/σ²",
    "pac_bayes_magnitude_flatness": "PAC-Bayes 1/σ² (by magnitude)",
    "pac_bayes_init": "PAC-Bayes (from start)",
    "pac_bayes_magnitude_init": "PAC-Bayes (by magnitude, start)",
    "pac_bayes_origin": "PAC-Bayes (from 0)",
    "pac_bayes_magnitude_origin": "PAC-Bayes (by magnitude, 0)",
    "pgd_accuracy": "accuracy under attack",
    "crown_certified": "share certified by CROWN",
    "interval_certified": "share certified by intervals",
    "unstable_relus": "share of ReLUs not settled",
    "smoothed_accuracy": "accuracy, smoothed",
    "smoothed_certified": "share certified by smoothing",
    "smoothed_abstentions": "abstentions, smoothed",
    "training_loss_sum": "sum of training losses",
}


def apart(labels: Sequence[str], most: int) -> list[str]:
    """The labels, cut to `most` letters where they are longer, and none like another.

    Both ends stay, for labels of a product begin or end alike; where that is not enough, what they
    differ in (the settings that not all of them have), or else all of the label.
    """
    settings = [re.split(r"(?<=[,;_\s-])", label) for label in labels]
    long = [own for own, label in zip(settings, labels, strict=True) if len(label) > most]
    shared = set.intersection(*map(set, long)) if len(long) > 1 else set()
    differ = ["".join(part for part in own if part not in shared) for own in settings]
    for found in (labels, [own.strip(",;_- ") for own in differ]):
        cut = [
            label if len(label) <= most else text if len(text) <= most
            else f"{text[: most // 2 - 1]}…{text[-most // 2:]}"
            for label, text in zip(labels, found, strict=True)
        ]  # fmt: skip
        if len({*cut}) == len({*labels}):
            return cut
    return list(labels)
