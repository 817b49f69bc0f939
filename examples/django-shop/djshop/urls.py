"""Where the door is."""

from django.urls import path

from djshop import views

urlpatterns = [path("orders", views.place), path("books", views.books)]
