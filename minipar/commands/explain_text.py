"""What `minipar explain` prints for people."""

COLUMNS = ("rounds", "messages", "sent", "reduced")
BOUNDED = ("alphas", "betas", "gammas")
MEMORY = {"shared": "buffer in shared memory",
          "own": "buffer in the ranks' own memory; they can share some",
          "none": "ranks that share no memory"}


def text(facts):
    """The facts of `explain.explain` as lines."""
    n = f"{facts['elements']:,} {facts['dtype']}"
    lines = [f"{facts['kind']} of {size(facts['bytes'])} ({n}) on {facts['ranks']} ranks, "
             f"{MEMORY[facts['memory']]}", _auto(facts), ""]
    lines += _table(facts)
    forms = [(row["name"], row["form"]) for row in facts["algorithms"] if "form" in row]
    if forms:
        width = max(len(name) for name, _ in forms)
        lines += ["", f"critical path in closed form, p = {facts['ranks']}, "
                      f"n = {facts['bytes']:,} bytes:"]
        lines += [f"  {name:{width}}  {form}" for name, form in forms]
        words = {w: None for row in facts["algorithms"] for w in row.get("legend", ())}
        lines += [f"    {word}" for word in words]
    refused = [f"  {row['name']}: {row['refused']}" for row in facts["algorithms"]
               if "refused" in row]
    if refused:
        lines += ["", "cannot serve here:", *refused]
    return "\n".join([*lines, "", _machine(facts["machine"])])


def size(nbytes):
    """Bytes as people write them: "4 MiB", "1.5 KiB", "100 B"."""
    value, unit = float(nbytes), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def seconds(value):
    """Seconds as people write them, in three digits."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _auto(facts):
    found = facts["auto"]
    if found is None:
        return "auto: no entry of the table is for it; name an algorithm"
    limits = [f"up to {found['bytes']:,} bytes" if "bytes" in found else "any size",
              f"up to {found['ranks']} ranks" if "ranks" in found else "any number of ranks"]
    if "node" in found:
        limits.append(f"up to {found['node']} of them on a node")
    if "shared" in found:
        limits.append("in shared memory" if found["shared"] else "copied to shared memory")
    reason = next((row["refused"] for row in facts["algorithms"]
                   if row["name"] == found["algorithm"] and "refused" in row), None)
    return (f"auto picks {found['algorithm']}: {found['entry']} ({', '.join(limits)})"
            + (f"; which it refuses: {reason}" if reason else ""))


def _table(facts):
    """A line for each algorithm that serves, and one for the bounds."""
    measured = any("measured_s" in row for row in facts["algorithms"])
    head = ["algorithm", *COLUMNS, *BOUNDED, "predicted"] + ["measured"] * measured
    rows = [head]
    for row in facts["algorithms"]:
        if "refused" in row:
            continue
        picked = facts["auto"] is not None and row["name"] == facts["auto"]["algorithm"]
        name = row["name"] + " (yours)" * row["own"] + " *" * picked
        cells = ["-"] * 8
        if "rounds" in row:
            cells = [str(row["rounds"]), str(row["messages"]), size(row["sent"]),
                     size(row["reduced"]), *(_beside(row, key, facts["bounds"]) for key in BOUNDED),
                     seconds(row["predicted_s"])]
        if measured:
            cells.append(seconds(row["measured_s"]) if "measured_s" in row else "-")
        rows.append([name, *cells])
    if facts["bounds"] is not None:
        bounds = facts["bounds"]
        rows.append(["no algorithm below", "", "", "", "", str(bounds["alphas"]),
                     size(bounds["betas"]), size(bounds["gammas"]), ""] + [""] * measured)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w)
                       for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]
    return [*lines, "* auto's. rounds, messages, sent, reduced: of the rank that has most. alphas, "
                    "betas, gammas: messages",
            "and fences, bytes moved, bytes reduced on the critical path, and how often the bound "
            "for messages."]


def _beside(row, key, bounds):
    """A number of the critical path, and how often the bound it is."""
    words = str(row[key]) if key == "alphas" else size(row[key])
    if bounds is None or not bounds[key]:
        return words
    return f"{words} ({row[key] / bounds[key]:.3g}x)"


def _machine(about):
    if about["comes_with_minipar"]:
        return (f"predicted by the machine that comes with minipar: {about['about']} `minipar tune "
                f"--fit` measures this one.")
    ranks = f", {about['ranks']} ranks by {about['launcher']}" if "ranks" in about else ""
    return f"predicted by {about['file']}{ranks}"
