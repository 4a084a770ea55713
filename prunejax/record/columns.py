"""The columns of a run directory's tables."""

# Epochs count from 0 (the index of `prune.start`); an event before training has epoch -1.
# Accuracies, stabilities, instabilities and sparsities are fractions, losses are in nats.
_RUN = ("run", "variant", "seed")
EPOCHS = (
    *_RUN,
    *("epoch", "step", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("learning_rate", "sparsity"),
)
EVENTS = (
    *_RUN,
    *("epoch", "step", "layer", "targeted", "live"),
    *("pre_accuracy", "post_accuracy", "pre_loss", "post_loss", "instability"),
)
# Of studies in which units come back: one row a layer and event. Shares are fractions.
UPDATES = (
    *_RUN,
    *("epoch", "step", "layer", "dropped", "grown", "live"),
    *("zero_gradient", "survival", "ever_live"),
)
# Of studies that name a method (`prune.method`): one row a run and layer, after training. Counts of
# weights, of units (and those without a live input), multiply-adds of one example in one pass.
COSTS = (
    *_RUN,
    *("layer", "weights", "live", "mean_live", "ever_live", "units", "dead_units"),
    "multiply_adds",
)
SPENT = ("training_flops", "inference_flops")  # and in `runs.csv`, relative to the dense network
# There, too: the share of the weights of its rows of costs.csv that is gone in the end. `sparsity`
# is of all parameters; `effective_sparsity`, too, with those on no live path.
PRUNABLE = "prunable_sparsity"
# Of an event, if asked for: the change of the test loss that gradient and curvature foretell.
FORECAST = ("predicted_first", "predicted_second")
# Of each layer at the end of a run; `dead_units`, masked or not, and `effective_weights` go by live
# paths from input to output: see `prunejax.wiring`.
LAYERS = (
    *_RUN,
    *("layer", "units", "masked_units", "dead_units"),
    *("weights", "live_weights", "effective_weights"),
)
# The same of the whole network, in `runs.csv`; empty where a model states no wiring.
STRUCTURE = ("effective_sparsity", "dead_units")
RUNS = (
    *_RUN,
    *("status", "final_test_accuracy", "best_test_accuracy", "best_epoch", "mean_stability"),
    *("events", "generalization_gap", "sparsity"),
)
# On the whole training set at the end, evaluation mode; see `config.evaluate_train`.
FIT = ("final_train_loss", "final_train_accuracy")
# Beside it: the sum over epochs of the mean training loss, as it was trained (nats).
LOSS_SUM = "training_loss_sum"
STOPPED = "stopped_step"  # training steps done when a run stopped by `config.stop_loss`
