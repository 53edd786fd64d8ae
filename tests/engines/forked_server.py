"""vLLM's API server, whose engine and workers are forked from it instead of started anew: each would import vLLM, 18 s of CPU.

Its own way of starting processes is that of the tests of the wheel and of the example.
"""

import multiprocessing

context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: context("fork")

from vllm.entrypoints.launchers.api_server.entry import main  # noqa: E402

if __name__ == "__main__":
    main()
