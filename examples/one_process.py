"""Train a small residual network in four blocks, all in this process.

One stage that holds all blocks is sequential local learning; with ``--stages 4`` on the command
line, or ``"runtime": {"stages": 4}`` here, every block has a process and the result is the same.
"""

import ppll


def main() -> None:
    recipe = ppll.load_recipe("digits-resnet", ["train.epochs=3"])
    result = ppll.Trainer(recipe).fit()
    for block, accuracy in enumerate(result.exit_accuracy):
        print(f"exit of block {block}: {accuracy:.1%}")
    print(f"busy: {result.busy_fraction[0]:.0%}, {result.samples_per_second:,.0f} samples/s")
    print(f"look at it: ppll report {result.run_folder}")


if __name__ == "__main__":
    main()
