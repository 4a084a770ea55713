import pytest

from prunejax.configs import default
from prunejax.errors import ConfigError
from prunejax.study.planning import plan
from prunejax.study.settings import config as config_lib
from tests.studies import PRUNE, tiny


def planned(variants):
    config = tiny()
    config.variants = variants
    arms = config_lib.variants(config, default.get_config())
    return arms, plan.build(arms)


def test_twelve_arms_in_four_programs():
    """Width and batch size are compiled, the learning rate is data: 2 x 2 programs for 12 arms."""
    rates = (1e-3, 3e-3, 0.01)
    arms, batches = planned(
        default.product(
            {
                "model.width": (0.125, 0.25),
                "optimizer.learning_rate": rates,
                "batch_size": (25, 50),
            },
            base={"prune": PRUNE},
        )
    )
    assert [arm.label for arm in arms][:3] == [
        "width=0_125-learning_rate=0_001-batch_size=25",
        "width=0_125-learning_rate=0_001-batch_size=50",
        "width=0_125-learning_rate=0_003-batch_size=25",
    ]
    assert len(arms) == 12
    assert len(batches) == 4
    assert {(b.program.batch_size, len(b.members)) for b in batches} == {(25, 6), (50, 6)}
    found = {(a.settings.model.width, a.settings.batch_size, a.settings.optimizer.learning_rate)
             for a in arms}  # fmt: skip
    assert found == {(w, b, r) for w in (0.125, 0.25) for b in (25, 50) for r in rates}
    assert all(arm.settings.prune.score == "ebn" for arm in arms)


def test_labels_of_tuples_words_and_fields_that_end_alike():
    variants = default.product(
        {
            "prune.schedule": ("linear",),
            "optimizer.schedule": ("cosine",),
            "prune.fraction": ((0.25, 0.5), (0.5,)),
            "data.augment": (False,),
            "optimizer.milestones": ((),),
        }
    )
    assert list(variants) == [
        "prune_schedule=linear-optimizer_schedule=cosine-fraction=0_25+0_5-augment=False-"
        "milestones=none",
        "prune_schedule=linear-optimizer_schedule=cosine-fraction=0_5-augment=False-milestones=none",
    ]
    first = next(iter(variants.values()))
    assert first.prune.fraction == (0.25, 0.5)
    assert first.optimizer.schedule == "cosine"


def test_named_values_may_set_several_fields_and_go_over_the_base():
    base = {"optimizer": {"learning_rate": 0.5, "momentum": 0.1}}
    recipes = {"sgd": {"name": "sgd", "learning_rate": 0.1}, "adam": {"name": "adam"}}
    variants = default.product({"optimizer": recipes, "batch_size": {"small": 8}}, base=base)
    assert list(variants) == ["optimizer=sgd-batch_size=small", "optimizer=adam-batch_size=small"]
    one, two = (variants[label].to_dict() for label in variants)
    assert one == {
        "optimizer": {"learning_rate": 0.1, "momentum": 0.1, "name": "sgd"},
        "batch_size": 8,
    }
    assert two["optimizer"] == {"learning_rate": 0.5, "momentum": 0.1, "name": "adam"}
    assert base == {"optimizer": {"learning_rate": 0.5, "momentum": 0.1}}  # untouched


def test_a_product_stands_beside_other_arms():
    arms, _ = planned(
        default.arms({"none": {}, **default.product({"batch_size": (50,)}, {"prune": PRUNE})})
    )
    assert [arm.label for arm in arms] == ["none", "batch_size=50"]
    assert arms[1].settings.prune.schedule == "linear"


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({}, "no axes"),
        ({"batch_size": ()}, "'batch_size' = (): give a tuple"),
        ({"batch_size": 32}, "'batch_size' = 32: give a tuple"),
        ({"prune.score": "l2"}, "'prune.score' = 'l2': give a tuple"),
        ({"optimizer.decay": (0.1, 0.10000001)}, "two arms are called 'decay=0_1'"),
    ],
)
def test_products_that_cannot_be(axes, words):
    with pytest.raises(ValueError, match="product: ") as error:
        default.product(axes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_told_with_its_arm():
    with pytest.raises(ConfigError, match=r"variant 'widht=1': unknown field 'bach.widht'"):
        planned(default.product({"bach.widht": (1,)}))
