"""tools.time_to_quality at a tiny size."""

import json

from tools.time_to_quality import time_to_quality

TINY = ["--image_size=16", "--num_encoder_channels=4", "--num_gen_channels=32", "--batch_size=10", "--dataset=drawn"]


def test_recipes_are_trained_to_the_target_or_the_limit(workplace, capsys):
    flags = ["--target=0", "--every=2", "--limit_steps=4", "--planned_steps=5", "--json=out.json"]
    assert time_to_quality([*TINY, *flags]) == 0
    printed = capsys.readouterr().out
    assert "| paper | 4 |" in printed and "| aging | 4 |" in printed and "takes" not in printed
    measured = json.loads((workplace / "out.json").read_text())
    assert {name: [row[0] for row in rows] for name, rows in measured.items()} == {
        "paper": [0, 2, 4],
        "aging": [0, 2, 4],
    }
    assert not (workplace / "save").exists()


def test_training_ends_at_the_target(workplace, capsys):
    assert time_to_quality([*TINY, "--target=1", "--recipes", "paper"]) == 0
    assert "| paper | 0 |" in capsys.readouterr().out


def test_missing_data_set_is_rejected_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert time_to_quality(["--dataset=none"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
