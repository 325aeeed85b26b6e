"""What Flower starts at a site for each message."""

import subprocess
import sys

NOT_NEEDED = (
    "matplotlib",
    "monai",
    "jinja2",
    "prrfl.data.synthetic",
    "prrfl.engine.workers",
    "prrfl.reports",
)


def test_a_message_loads_no_drawing_no_generated_data_and_no_worker_processes():
    code = f"import prrfl.flower.site.app, sys; print(*sorted(sys.modules.keys() & set({NOT_NEEDED})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
