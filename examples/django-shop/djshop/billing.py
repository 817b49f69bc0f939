"""The service that takes the money: ``python manage.py tidewire run djshop.billing:billing``."""

from django.db import transaction

from djshop.events import OrderPlaced, PaymentTaken
from djshop.models import Payment
from tidewire import Reject, Service

billing = Service("djshop")


@billing.on(OrderPlaced)
def charge(order: OrderPlaced) -> PaymentTaken:
    """Take the money: what the ORM writes here, the inbox mark and the next event are one transaction."""
    if order.total <= 0:
        raise Reject("an order must cost something")
    with transaction.atomic():  # a savepoint: the unit's transaction is around it
        Payment.objects.create(order_id=order.order_id, total=order.total)
    return PaymentTaken(order_id=order.order_id)
