"""What the Python client `etcd3` can do, done against one endpoint: python_client.py HOST PORT."""

import queue
import sys
import threading

import etcd3

client = etcd3.client(host=sys.argv[1], port=int(sys.argv[2]), timeout=10)


def refused(words, call):
    try:
        call()
    except Exception as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"not refused: {words}")


def keys():
    client.put("/py/a", "1")
    client.put("/py/b", "2")
    value, about = client.get("/py/a")
    assert (value, about.key, about.version) == (b"1", b"/py/a", 1)
    assert client.get("/py/none") == (None, None)
    assert [value for value, _ in client.get_prefix("/py/")] == [b"1", b"2"]
    assert [value for value, _ in client.get_prefix("/py/", sort_order="descend")] == [b"2", b"1"]
    assert [value for value, _ in client.get_range("/py/a", "/py/b")] == [b"1"]
    assert client.put_if_not_exists("/py/a", "9") is False
    assert client.replace("/py/a", "1", "3") is True
    assert client.replace("/py/a", "1", "4") is False
    assert client.get("/py/a")[0] == b"3"
    assert client.delete("/py/b") is True
    assert client.delete("/py/b") is False
    assert client.delete_prefix("/py/").deleted == 1
    binary = bytes(range(256))
    client.put(binary, binary)
    assert client.get(binary)[0] == binary
    client.delete(binary)


def transactions():
    client.put("/txn/a", "1")
    t = client.transactions
    done, answers = client.transaction(
        compare=[t.value("/txn/a") == "1", t.version("/txn/a") > 0, t.create("/txn/none") == 0],
        success=[t.put("/txn/a", "2"), t.get("/txn/a"), t.delete("/txn/none")],
        failure=[t.put("/txn/a", "wrong")],
    )
    assert done and [value for value, _ in answers[1]] == [b"2"]
    done, answers = client.transaction(
        compare=[t.value("/txn/a") == "1"], success=[t.put("/txn/a", "wrong")], failure=[t.get("/txn/a")]
    )
    assert not done and answers[0][0][0] == b"2"
    twice = [t.put("/txn/a", "1"), t.put("/txn/a", "2")]
    refused("duplicate key given in txn request", lambda: client.transaction([], twice, []))
    client.delete_prefix("/txn/")


def leases():
    lease = client.lease(ttl=60)
    client.put("/lease/a", "1", lease=lease)
    assert lease.granted_ttl == 60 and 50 < lease.remaining_ttl <= 60
    assert lease.keys == [b"/lease/a"]
    assert [answer.TTL for answer in lease.refresh()] == [60]
    lease.revoke()
    assert client.get("/lease/a") == (None, None)


def watches():
    seen = queue.Queue()
    number = client.add_watch_prefix_callback("/watch/", seen.put, prev_kv=True)
    client.put("/watch/a", "1")
    client.put("/watch/a", "2")
    client.delete("/watch/a")
    events = []
    while len(events) < 3:
        events.extend(seen.get(timeout=10).events)
    assert [type(event).__name__ for event in events] == ["PutEvent", "PutEvent", "DeleteEvent"]
    assert [event.value for event in events] == [b"1", b"2", b""]
    assert [event.prev_value for event in events] == [b"", b"1", b"2"]
    client.cancel_watch(number)
    past, cancel = client.watch("/watch/a", start_revision=events[0].mod_revision)
    assert [next(past).mod_revision for _ in range(3)] == [event.mod_revision for event in events]
    cancel()


def locks():
    """This client builds its locks from transactions, leases and watches."""
    first, second = client.lock("job", ttl=20), client.lock("job", ttl=20)
    assert first.acquire(timeout=5)
    assert not second.acquire(timeout=0.3)
    threading.Timer(0.3, first.release).start()
    assert second.acquire(timeout=10)
    assert second.release()


def the_server():
    status = client.status()
    assert status.version.startswith("3.") and status.leader is not None
    assert len(list(client.members)) == 3
    assert list(client.list_alarms()) == []
    revision = client.put("/old", "1").header.revision
    client.put("/old", "2")
    client.compact(revision + 1)
    refused("required revision has been compacted", lambda: client.compact(revision))
    client.defragment()


for part in (keys, transactions, leases, watches, locks, the_server):
    part()
    print(part.__name__, "work")
print("all is well")
