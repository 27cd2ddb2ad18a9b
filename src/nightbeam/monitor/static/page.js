// A page that nobody looks at asks for nothing; when it is looked at again, it is brought up to date at once.
document.addEventListener("htmx:beforeRequest", function (event) {
  if (document.hidden && event.detail.elt.id === "fresh") event.preventDefault();
});
document.addEventListener("visibilitychange", function () {
  var fresh = document.getElementById("fresh");
  if (!document.hidden && fresh && fresh.hasAttribute("hx-get")) htmx.trigger(fresh, "seen");
});
// A page that can no longer be brought up to date must not look as if it were.
function say(silent) {
  var banner = document.getElementById("silent");
  if (!silent && banner) banner.remove();
  if (!silent || banner) return;
  banner = document.createElement("div");
  banner.id = "silent";
  banner.className = "banner tone-bad";
  banner.setAttribute("role", "alert");
  var words = banner.appendChild(document.createElement("p"));
  words.textContent = "The monitor does not answer. What stands here is of " + document.getElementById("made").textContent + ".";
  document.getElementById("main").prepend(banner);
}
document.addEventListener("htmx:sendError", function () { say(true); });
document.addEventListener("htmx:responseError", function () { say(true); });
document.addEventListener("htmx:timeout", function () { say(true); });
document.addEventListener("htmx:afterRequest", function (event) { if (event.detail.successful) say(false); });
