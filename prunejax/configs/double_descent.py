"""Double descent over width, and what prunability says along it.

    python -m prunejax.main --config=configs/double_descent.py --workdir=runs/double_descent

500 Fashion-MNIST images of 14x14, 20 % of the training labels replaced by another class, one
hidden ReLU layer of 4 to 128 units, SGD at 0.05 with a cosine to 0, 1,500 steps of 100 examples, no
early stop; three seeds. Widths are programs of their own: a mask over units of one wide network
would leave the classifier's dead rows in every measure and the wider network's initialization.

Result, seeds 840 to 842, means over seeds:

    width                       4     6     8     12    16    24    32    64    128
    train loss                  .84   .52   .40   .14   .06   .02   .02   .01   .01
    test loss                   1.87  2.04  2.01  2.24  2.41  2.10  2.08  1.74  1.57
    test error                  .50   .45   .41   .39   .40   .37   .37   .34   .33
    prunability, loss + 0.1     .66   .73   .68   .67   .61   .57   .54   .48   .45
    prunability, loss x 1.1     .67   .78   .76   .84   .85   .87   .87   .86   .87

Test loss is largest at 16 units, where .7 % of the (partly wrong) training labels are missed, and
lies 0.33 nats lower at 32. The share of weights that the absolute tolerance needs is .17 less at
128 units than there; it is largest at 6 units, before the peak of the test loss. The relative one
does not fall, for its budget shrinks with the training loss.

`:quick` has four widths and a tenth of the steps (mechanics only).
"""

from ml_collections import ConfigDict

from prunejax.configs import default, recipes

WIDTHS = (4, 6, 8, 12, 16, 24, 32, 64, 128)


def get_config(arg: str = "") -> ConfigDict:
    """Returns the study. `arg`: "" or "quick"."""
    quick = recipes.form(arg, "configs/double_descent.py") == "quick"
    config = default.get_config()
    config.name = "Double descent over width"
    config.seeds, config.first_seed = (1, 0) if quick else (3, 840)
    config.epochs, config.batch_size, config.evaluate_every = (30 if quick else 300), 100, 50
    config.evaluate_train, config.eval_batch_size = True, 500
    config.data.name, config.data.train_examples = "fashion14", 500
    config.data.label_noise = 0.2
    config.model.name, config.model.hidden, config.model.batch_norm = "mlp", (1,), False
    config.optimizer.name, config.optimizer.momentum = "sgd", 0.9
    config.optimizer.learning_rate, config.optimizer.schedule = 0.05, "cosine"
    config.measures.names = ("prunability", "prunability_forms")
    config.measures.split, config.measures.examples = "train", 0
    widths = (4, 12, 32, 128) if quick else WIDTHS
    config.variants = default.arms({f"width={w}": {"model": {"width": float(w)}} for w in widths})
    config.report.baseline = f"width={widths[-1]}"
    config.report.figures = ("double_descent", "predictors", "table")
    config.report.mechanics_only = quick
    return config
