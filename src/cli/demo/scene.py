"""Makes the scene of `user-http-server demo`: a cube on a plane, small enough to render in seconds.

blender --background --factory-startup --python scene.py -- PATH
"""

import math
import sys

import bpy

scene = bpy.context.scene
scene.render.engine = "CYCLES"
scene.cycles.device = "CPU"
scene.cycles.samples = 16
scene.cycles.use_denoising = False
scene.render.resolution_x = 320
scene.render.resolution_y = 240
scene.render.resolution_percentage = 100

bpy.ops.mesh.primitive_plane_add(size=40, location=(0, 0, -1))
cube = bpy.data.objects["Cube"]
cube.rotation_euler.z = math.radians(25)
material = bpy.data.materials.new("orange")
material.diffuse_color = (0.8, 0.25, 0.03, 1)
material.use_nodes = True
material.node_tree.nodes["Principled BSDF"].inputs["Base Color"].default_value = (0.8, 0.25, 0.03, 1)
cube.data.materials.clear()
cube.data.materials.append(material)

bpy.ops.wm.save_as_mainfile(filepath=sys.argv[-1])
