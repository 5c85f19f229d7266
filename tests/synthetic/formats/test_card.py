import math

import pytest
import torch
import yaml

from fastdistill.synthetic.formats.card import Measurement, card_text
from fastdistill.synthetic.formats.eight_bit import loss_of_eight_bits

MEASURED = Measurement(
    exact=(0.5, 0.75), eight_bit=(0.5, 0.5), protocol="dc", architecture="convnet", duration="300 epochs"
)


def front_matter(card):
    _, front, rest = card.split("---\n", 2)
    return yaml.safe_load(front), rest


@pytest.mark.parametrize("target", ["safetensors", "png", "pt", "hf"])
def test_a_card_says_what_the_images_are(kind, target):
    front, text = front_matter(card_text(kind, target))
    assert front["task_categories"] == ["image-classification"]
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    assert ("dataset_info" in front) == (target == "hf")
    assert "fastdistill.load(" in text
    assert f"{len(kind)} synthetic images" in text
    assert (f"in {kind.runs} independent runs" in text) == (kind.runs > 1)
    assert ("ZCA" in text) == (kind.normalization.whitening is not None)
    assert ("8 bits lose" in text) == (target in ("png", "hf"))


def test_the_loss_is_stated(build):
    distilled = build()
    loss = loss_of_eight_bits(distilled)
    text = card_text(distilled, "png", MEASURED)
    assert f"- values clipped to the range of real pixels: {100 * loss.clipped:.3g} %" in text
    assert f"- PSNR of the 8-bit pixels: {loss.psnr:.1f} dB" in text
    assert "- test accuracy of the exact images: 62.50 %" in text
    assert "- test accuracy of the 8-bit images: 50.00 %" in text
    assert "- difference, student by student: -12.50 ± 12.50 (standard error) points" in text
    assert "2 fresh students of convnet, protocol dc, 300 epochs" in text
    assert loss.clipped > 0.01


def test_no_accuracy_is_said_to_be_none(build):
    assert "- accuracy: not measured" in card_text(build(), "hf")
    assert "- accuracy: not measured, for want of data" in card_text(build(), "hf", "not measured, for want of data")


def test_images_with_steps_of_their_own_say_so_first(build):
    text = card_text(build(scheduled=True), "pt")
    assert text.index("only by replaying them") < text.index("```python")
    assert "replays the 3 steps of 5 images, at learning rates of 0.01 to 0.05" in text
    assert "plain SGD, no momentum, no augmentation." in text
    assert "replay" not in card_text(build(), "pt")


@pytest.mark.parametrize(
    ("stepping", "words"),
    [
        (
            {"optimizer": "momentum", "momenta": torch.full((3,), 0.5), "decay": 5e-4},
            "SGD with a momentum of 0.5, weight decay 0.0005, no augmentation.",
        ),
        (
            {"optimizer": "adam", "momenta": torch.tensor([0.5, 0.75, 0.9]), "augmentation": "color_crop"},
            "Adam with a β₁ of 0.5 to 0.9, augmentation color_crop of every image (DSA).",
        ),
    ],
)
def test_a_card_says_how_steps_move_the_weights(build, stepping, words):
    assert f"at learning rates of 0.01 to 0.05: {words}" in card_text(build(scheduled=True, stepping=stepping), "pt")


@pytest.mark.parametrize("target", ["safetensors", "png", "pt", "hf"])
def test_a_learned_rate_is_said_first(build, target):
    text = card_text(build(learning_rate=torch.tensor([0.0125])), target)
    assert "**Train with learning rate 0.0125, which" in text
    assert text.index("learning rate 0.0125") < text.index("```python")


@pytest.mark.parametrize("target", ["safetensors", "png", "pt", "hf"])
def test_soft_labels_are_said_to_be_soft_with_how_to_train(build, target):
    own, shared, one = build(runs=2, soft=(2, 18, 9)), build(runs=2, soft=(18, 9)), build(soft=(18, 9))
    where = {"safetensors": "`labels`", "png": "`soft_label`", "pt": "`labels.pt`", "hf": "column `soft_label`"}[target]
    for distilled in (own, shared, one):
        text = card_text(distilled, target)
        assert "a row of 9 numbers of at least 0 and any sum" in text
        assert "`torch.nn.functional.cross_entropy(logits, rows)`" in text
        assert where in text
        assert ("of every run its own" in text, "the same in every run" in text) == (
            distilled is own,
            distilled is shared,
        )
    assert "soft" not in card_text(build(), target)


def test_the_difference_is_that_of_pairs():
    assert MEASURED.difference == -0.125
    assert MEASURED.standard_error == pytest.approx(0.125)
    one = Measurement(exact=(0.5,), eight_bit=(0.25,), protocol="dc", architecture="mlp", duration="1 epochs")
    assert math.isnan(one.standard_error)
    with pytest.raises(ValueError, match="expected the accuracies of the same students, got 1 and 2"):
        Measurement(exact=(0.5,), eight_bit=(0.2, 0.3), protocol="dc", architecture="mlp", duration="1 epochs")


def test_one_student_has_no_standard_error(build):
    one = Measurement(exact=(0.5,), eight_bit=(0.25,), protocol="dc", architecture="mlp", duration="1 epochs")
    assert "- difference, student by student: -25.00 points" in card_text(build(), "png", one)


def test_a_card_shows_no_path_of_this_machine(build):
    front, text = front_matter(card_text(build(dataset="folder:/home/someone/birds"), "png"))
    assert "/home/someone" not in text + str(front)
    assert front["pretty_name"] == "folder:birds, distilled"


def test_names_cannot_break_out_of_the_card(build):
    odd = build(dataset="x\n---\n# y | `z` <script>", details={"a|b": "c\n\n# d"})
    front, text = front_matter(card_text(odd, "png"))
    assert front["license"] == "unknown"
    assert "\n# y" not in text
    assert "\n# d" not in text
    assert "<script>" not in text.replace("\\<script\\>", "")


@pytest.mark.parametrize(("count", "category"), [(18, "n<1K"), (1008, "1K<n<10K")])
def test_sizes_are_those_of_the_hub(build, count, category):
    distilled = build(runs=count // 18, channels=1)
    assert front_matter(card_text(distilled, "pt"))[0]["size_categories"] == [category]
