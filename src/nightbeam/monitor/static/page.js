// A page that nobody looks at asks for nothing; when it is looked at again, it is brought up to date at once.
document.addEventListener("htmx:beforeRequest", function (event) {
  if (document.hidden && event.detail.elt.id === "fresh") event.preventDefault();
});
document.addEventListener("visibilitychange", function () {
  var fresh = document.getElementById("fresh");
  if (!document.hidden && fresh && fresh.hasAttribute("hx-get")) htmx.trigger(fresh, "seen");
});
