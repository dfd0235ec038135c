"""A request that holds the device is done in turns: it is a generator that yields where it would wait for the device,
and returns its answer. Two of them taken in turn keep the device busy: while it runs what one has enqueued, the host
prepares the other. All work goes to one stream, so one request's never runs beside another's."""


def whole(turns):
    """Does a request from beginning to end, when there is no other; returns its answer."""
    try:
        while True:
            next(turns)
    except StopIteration as end:
        return end.value
