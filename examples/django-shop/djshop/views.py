"""The door: an order's row and its event are one `transaction.atomic()`."""

import json
from decimal import Decimal

from django.db import IntegrityError, transaction
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST

from djshop.events import OrderPlaced
from djshop.models import Order, Payment
from tidewire.integrations.django import publish


@csrf_exempt
@require_POST
def place(request: HttpRequest) -> JsonResponse:
    """Take an order. One that is refused leaves neither a row nor an event."""
    order = json.loads(request.body)
    total = Decimal(order["total"])
    try:
        with transaction.atomic():
            publish(OrderPlaced(order_id=order["order_id"], total=total))
            Order(order_id=order["order_id"], total=total).save(force_insert=True)
    except IntegrityError:
        return JsonResponse({"error": "this order is known"}, status=409)
    return JsonResponse(order, status=202)


@require_GET
def books(request: HttpRequest) -> JsonResponse:
    """How many orders there are, how many payments, and how many orders are paid."""
    paid = Payment.objects.values("order_id").distinct().count()
    return JsonResponse({"orders": Order.objects.count(), "payments": Payment.objects.count(), "paid": paid})
