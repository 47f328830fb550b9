"""Ask questions and print the answers: request.py NAME_SERVERS TOPIC QUESTION..."""

import sys

import anyio

from trio_rmq.client import Message, Producer


async def main(name_servers: str, topic: str, *questions: str) -> None:
    async with Producer(name_servers=name_servers, group="docs_asking") as producer:

        async def ask(question: str) -> None:
            reply = await producer.request(Message(topic, question.encode()), timeout_seconds=10)
            print(f"{question}: {reply.body.decode()}")

        async with anyio.create_task_group() as tasks:
            for question in questions:
                tasks.start_soon(ask, question)


anyio.run(main, *sys.argv[1:], backend="trio")
