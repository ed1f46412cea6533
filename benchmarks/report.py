def write(out, name):
    return (out / f"{name}.jsonl").read_text()[:3000]
