"""A federation on one machine: a server and two sites as real processes, with TLS and node authentication.

python examples/federation.py    # about a minute; writes certificates, states and results to ./federation

Between real hospitals each command runs on another machine: see docs/deployment.md. This needs prrfl[flower].
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path("federation")
SITES = ("clientA", "clientB")
PORT, SITE_PORTS = 9092, (9095, 9096)
TRAINING = ("--image-size", "32", "--rounds", "2", "--epochs", "2")


def command(*arguments: object) -> list[str]:
    """Return a prrfl command for a new process."""
    return [sys.executable, "-m", "prrfl", *map(str, arguments)]


def main() -> None:
    """Generate data, make certificates, start everything, and wait for the server to finish."""
    FOLDER.mkdir()
    data, certs = FOLDER / "data", FOLDER / "certs"
    names = ",".join(SITES)
    generated = command("generate", data, "--sites", len(SITES), "--images", 30, "--image-size", 32)
    subprocess.run(generated, check=True)
    subprocess.run(command("certs", certs, "--sites", names), check=True)

    server = command(
        *("server", "--sites", names, "--certs", certs / "server", "--out", FOLDER / "run"),
        *("--port", PORT, *TRAINING),
    )
    sites = [
        command(
            *("site", "--name", name, "--data", data, "--home", FOLDER / name),
            *("--certs", certs / "sites" / name, "--superlink", f"127.0.0.1:{PORT}", "--port", port),
            *("--threads", 1),  # here the sites share one machine
        )
        for name, port in zip(SITES, SITE_PORTS, strict=True)
    ]
    processes = [subprocess.Popen(site) for site in sites]
    try:
        subprocess.run(server, check=True)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    print("The server has scores, but no network; each site has its own:")
    for path in sorted(FOLDER.rglob("best.safetensors")):
        print(f"  {path}")


if __name__ == "__main__":
    main()
