"""Draw the convergence of DETR and Deformable DETR from their record of measurements.

Run it from anywhere.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt

DOCS = Path(__file__).resolve().parents[1]
RECORD = DOCS / 'measurements' / 'detr-convergence.json'


def main() -> None:
    rows = json.loads(RECORD.read_text())['figures']
    figure, ax = plt.subplots(figsize=(6, 3.6), layout='constrained')
    for marker, (name, columns) in zip('so', rows.items(), strict=True):
        values = {
            int(title.removeprefix('epoch ')): float(value)
            for title, value in columns.items()
            if title.startswith('epoch ')
        }
        ax.plot(list(values), list(values.values()), marker=marker, label=name)
    ax.set_xticks(list(values))
    ax.set_ylim(bottom=0)
    ax.set_xlabel('epoch')
    ax.set_ylabel('box AP, in %')
    ax.grid(alpha=0.3)
    ax.spines[['top', 'right']].set_visible(False)
    ax.legend(frameon=False)
    path = DOCS / 'images' / 'detr_convergence.png'
    figure.savefig(path, dpi=130)
    print(path)


if __name__ == '__main__':
    main()
