# CUDA image with the same pins as `make setup`.
#   docker build -t lit_llm . && docker run --gpus all -v $PWD/runs:/home/trainer/runs lit_llm fit --config pretrain/quickstart
FROM nvidia/cuda:13.0.1-base-ubuntu24.04

# The user has uid 1000, most people's, so that what they mount for runs can be written.
# g++ is for torch.compile (Triton and Inductor build small C++ launchers).
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev g++ git ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu && useradd --uid 1000 --create-home trainer

USER trainer
WORKDIR /home/trainer
ENV VIRTUAL_ENV=/home/trainer/.venv PATH=/home/trainer/.venv/bin:$PATH

COPY --chown=trainer requirements.lock lit_llm/
RUN python3 -m venv .venv \
    && pip install --no-cache-dir torch==2.13.0 uv==0.13.9 \
    && uv pip install --no-cache --no-deps -r lit_llm/requirements.lock

COPY --chown=trainer . lit_llm
RUN uv pip install --no-cache --no-deps ./lit_llm

ENTRYPOINT ["lit_llm"]
CMD ["--help"]
