"""Three transactions - paid, cancelled, unknown until asked: transaction.py NAME_SERVERS TOPIC."""

import sys

import anyio

from trio_rmq.client import Message, ReceivedMessage, TransactionProducer, TransactionState

ledger: dict[str, TransactionState] = {}  # stands for the database that a local transaction writes to
asked = anyio.Event()


async def check(message: ReceivedMessage) -> TransactionState:
    asked.set()
    return ledger.get(message.message_id, TransactionState.ROLLBACK)


async def pay(transaction_id: str) -> TransactionState:
    ledger[transaction_id] = TransactionState.COMMIT
    return TransactionState.COMMIT


async def cancel(transaction_id: str) -> TransactionState:
    return TransactionState.ROLLBACK


async def forget(transaction_id: str) -> TransactionState:
    ledger[transaction_id] = TransactionState.COMMIT
    raise ConnectionError("the bank has paid, but its answer was lost")


async def main(name_servers: str, topic: str) -> None:
    async with TransactionProducer(check, name_servers=name_servers, group="docs_tx") as producer:
        for local_transaction in (pay, cancel, forget):
            result = await producer.send_in_transaction(
                Message(topic, b"order 7"), local_transaction, check_immunity_seconds=1
            )
            print(local_transaction.__name__, result.state.name)
        await asked.wait()  # the broker asks about the third, and commits it


anyio.run(main, *sys.argv[1:], backend="trio")
