"""The same network and data, trained by several methods, side by side on one page.

Whoever wants more seeds and a table with their spread takes ``ppll study``.
"""

from pathlib import Path

import ppll
from ppll.reports.report import write_report

METHODS = ("backprop", "dgl", "predsim", "scpl")


def main() -> None:
    runs = []
    for method in METHODS:
        settings = [f"method.name={method}", "train.epochs=3"]
        recipe = ppll.load_recipe("digits-resnet", settings)
        result = ppll.Trainer(recipe, out=Path("runs") / f"method-{method}").fit()
        runs.append(Path(result.run_folder))
        accuracy = f"{result.test_accuracy:.1%}"
        print(
            f"{method:<10}{result.num_blocks} blocks  {accuracy:>6}  {result.train_seconds:.1f} s"
        )
    page = Path("runs") / "methods.html"
    write_report(runs, page)
    print(f"side by side: {page}")


if __name__ == "__main__":
    main()
