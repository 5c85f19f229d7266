import math

import pytest
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
    assert "replay" not in card_text(build(), "pt")


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
