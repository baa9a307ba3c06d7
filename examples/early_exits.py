"""Let easy samples leave the network early: every block that predicts is an exit.

A sample leaves at the first exit that is sure enough, so most never see the later blocks.
"""

import torch
from torch import nn

import ppll

THRESHOLDS = [0.7, 0.9, 0.99]


def main() -> None:
    recipe = ppll.load_recipe("digits-resnet", ["train.epochs=4"])
    run = ppll.Trainer(recipe).fit().run_folder
    report = ppll.evaluate_exits(run, THRESHOLDS)
    print(f"final output: {report.exit_accuracy[-1]:.1%}, averaged: {report.average_accuracy:.1%}")
    for threshold, trade in zip(THRESHOLDS, report.trades, strict=True):
        print(
            f"leave when {threshold:.0%} sure: {trade.accuracy:.1%} right, "
            f"{trade.mean_blocks:.2f} of {len(report.exit_accuracy)} blocks on average"
        )
    # By hand, on an image of your own: ask the exits one after the other.
    network = ppll.load(run)
    image = torch.randint(0, 256, (1, 1, 8, 8), dtype=torch.uint8)
    for block, logits in enumerate(network.exits(image)):
        if logits is not None:
            confidence, digit = nn.functional.softmax(logits, dim=1).max(dim=1)
            print(f"block {block}: a {digit.item()}, {confidence.item():.0%} sure")


if __name__ == "__main__":
    main()
