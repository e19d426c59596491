"""Benchmarks as pictures: time and bus bandwidth over size."""


def plot(rows, path, title):
    """Draw rows, a line for each algorithm, into the image file `path`. Needs matplotlib.

    What the model predicts ("predicted_us" of a row, where there is one) is dotted.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name in dict.fromkeys(row["algorithm"] for row in rows):
        mine = [row for row in rows if row["algorithm"] == name]
        sizes = [row["size"] for row in mine]
        for axis, key in zip(axes, ("time_us", "busbw")):
            line, = axis.plot(sizes, [row[key] for row in mine], "o-", markersize=3, label=name)
            told = [row for row in mine if row.get("predicted_us")]
            axis.plot([row["size"] for row in told],
                      [row["predicted_us"] if key == "time_us" else
                       row["busbw"] * row["time_us"] / row["predicted_us"] for row in told],
                      ":", color=line.get_color())
    for axis, label in zip(axes, ("time (us)", "bus bandwidth (GB/s)")):
        axis.set(xscale="log", xlabel="size (bytes)", title=label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
