"""llama-cpp-python's own server with the tap around it. Usage: python llama_tapped.py FILE.gguf PORT"""

import sys

import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings

from mlsecd.taps.asgi import Tap

app = create_app(
    server_settings=ServerSettings(api_key="sk-alice"),
    model_settings=[ModelSettings(model=sys.argv[1], model_alias="tiny", n_ctx=512, logits_all=True, verbose=False)],
)
app.add_middleware(Tap)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
